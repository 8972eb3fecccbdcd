"""Where to cut an image so that its tiles, segmented one at a time, give what the whole image gives.

A tile answers for its core, and the net is shown the core with its surroundings:

- so many real pixels on every side as a pixel's class may depend on (`AxisGeometry.margin`), cut off where the image
  ends: there the net pads the tile exactly as it pads the image, in the same place;
- from a first pixel on the image's own phase, so that the tile's cells are cells of the image. The phase repeats with
  the net's alignment; where the class map is the nearest cell's, with two strides too, because a pixel half-way between
  two cells takes the even one;
- up to the last pixel only from where the padding behind it ends where the image's does: a net's least size may
  forbid a short tile there.

What a net with global context (`ModelInfo.global_context`) says of a tile depends on the whole tile. Its tiles overlap
by more than the margin, and are blended (`fcnseg.blending`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fcnseg.errors import UsageError
from fcnseg.geometry import AxisGeometry
from fcnseg.model_file import ModelInfo

_LARGEST_CORE = 3072
"""Ten million pixels: the margins of most nets add little, and one can still see progress and stop between tiles."""
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in the image's pixels and cells.

    Attributes:
        core: Pixels that the tile answers for.
        read: Pixels that the net is shown.
        cells: The core's cells: those centred in it, and the outermost at the image's ends.
        valid: Cells that are the image's own; beyond `cells` where tiles overlap in order to be blended.
        first_cell: Which cell of the image the tile's cell 0 is.
    """

    core: slice
    read: slice
    cells: slice
    valid: slice
    first_cell: int

    @property
    def core_in_tile(self) -> slice:
        """The core, in the tile's pixels."""
        return slice(self.core.start - self.read.start, self.core.stop - self.read.start)

    @property
    def cells_in_tile(self) -> slice:
        """The core's cells, by the tile's numbers."""
        return slice(self.cells.start - self.first_cell, self.cells.stop - self.first_cell)

    @property
    def valid_in_tile(self) -> slice:
        """The valid cells, by the tile's numbers."""
        return slice(self.valid.start - self.first_cell, self.valid.stop - self.first_cell)


@dataclass(frozen=True)
class Tiling:
    """How an image is cut for one model.

    Attributes:
        info: What the model's file says of itself.
        height: The image's rows.
        width: The image's columns.
        rows: Tiles down the rows.
        columns: Tiles along the columns.
    """

    info: ModelInfo
    height: int
    width: int
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[Span, Span]]:
        """The tiles, row by row."""
        return ((rows, columns) for rows in self.rows for columns in self.columns)

    @property
    def exact(self) -> bool:
        """Whether the answer is the whole image's: the net has no global context, or there is one tile."""
        return len(self) == 1 or not self.info.global_context

    @property
    def notice(self) -> str | None:
        """What a user should know of an answer that is not exact, in one line; None where it is."""
        if self.exact:
            return None
        names = self.info.global_context
        rest = len(names) - _NAMES_SHOWN
        return (
            f"{self.info.architecture} looks at the whole image at once ({', '.join(names[:_NAMES_SHOWN])}"
            f"{f' and {rest} more' if rest > 0 else ''}), and sees {len(self)} tiles instead: they are blended where"
            " they overlap, and the mask is near the whole image's but not equal to it; larger tiles come closer"
        )

    @property
    def work(self) -> float:
        """Pixels that the net computes for the tiles, padding included, over those for the whole image.

        The net's multiply-adds grow as its padded pixels do, so this is their ratio too.
        """
        rows, columns = self._padded_sizes
        return sum(rows) * sum(columns) / math.prod(self.info.geometry.padded(self.height, self.width))

    @property
    def largest(self) -> int:
        """Padded pixels of the largest tile: working memory is so many times that of a pixel."""
        rows, columns = self._padded_sizes
        return max(rows) * max(columns)

    @property
    def _padded_sizes(self) -> tuple[list[int], list[int]]:
        """Rows of the padded tiles, and columns."""
        geometry = self.info.geometry
        rows = [geometry.y.padded(span.read.stop - span.read.start) for span in self.rows]
        return rows, [geometry.x.padded(span.read.stop - span.read.start) for span in self.columns]


def plan_tiles(info: ModelInfo, height: int, width: int, tile: int | None) -> Tiling:
    """Cut an image into tiles.

    Args:
        info: The metadata of the model.
        height: The image's rows, at least 1.
        width: The image's columns, at least 1.
        tile: Most rows and columns of a core, rounded up to the net's phase; None leaves the image whole. Cores are
            made equal; an image that is not larger than a core and its margins along an axis is not cut there.

    Raises:
        UsageError: `tile` is not positive.
    """
    if tile is not None and tile < 1:
        raise UsageError(f"tiles of {tile} pixels were asked for; they must have at least 1")
    rows, columns = (
        _cut(axis, size, tile, _phase(info, axis), blended=bool(info.global_context))
        for axis, size in ((info.geometry.y, height), (info.geometry.x, width))
    )
    return Tiling(info, height, width, rows, columns)


def choose_tile(info: ModelInfo, height: int, width: int, max_pixels: float) -> int | None:
    """Choose the fewest tiles, of up to 3072, that there is memory for: the fewer, the less is computed twice.

    Args:
        info: The metadata of the model.
        height: The image's rows.
        width: The image's columns.
        max_pixels: Padded pixels that a run has memory for: the bytes to spare over `Probe.bytes_per_pixel`, or
            over `plain_bytes_per_pixel` where no confidence is asked for.

    Returns:
        Rows and columns of a core for `plan_tiles`; None where the whole image fits.

    Raises:
        UsageError: Not even the smallest tile fits.
    """
    if math.prod(info.geometry.padded(height, width)) <= max_pixels:
        return None
    step = min(_phase(info, info.geometry.y), _phase(info, info.geometry.x))
    most = max(1, _LARGEST_CORE // step)
    # For 1, 2, 3... tiles along a side. A tile of two has one margin, one of three may have two and be larger.
    sides = (-(-size // step) for size in (height, width))
    cores = {min(most, -(-side // count)) for side in sides for count in range(1, side + 1)}
    for core in sorted(cores, reverse=True):
        if plan_tiles(info, height, width, core * step).largest <= max_pixels:
            return core * step
    least = plan_tiles(info, height, width, step).largest
    raise UsageError(
        f"the smallest tile of {info.architecture} with its margins has {least} pixels, and there is memory for"
        f" {int(max_pixels)}; allow more memory, or use a model with a smaller receptive field"
    )


def _phase(info: ModelInfo, axis: AxisGeometry) -> int:
    """Pixels by which a tile may be moved without its answer changing."""
    strides = 1
    if info.class_map_at == "cell":
        strides = 2
    if info.global_context:
        strides = 4  # room for two overlaps in a core
    return math.lcm(axis.alignment, strides * axis.stride)


def _cut(axis: AxisGeometry, size: int, tile: int | None, phase: int, *, blended: bool) -> tuple[Span, ...]:
    core = size if tile is None else -(-tile // phase) * phase
    overlap = core // axis.stride // 8 if blended and tile is not None else 0  # cells on each side of a border
    overlap = max(overlap, 1) if blended else 0
    reach = axis.margin + overlap * axis.stride
    cells = axis.cells(size)
    if size <= core + 2 * reach:
        return (Span(slice(0, size), slice(0, size), slice(0, cells), slice(0, cells), 0),)
    count = math.ceil(size / core)
    core = math.ceil(size / count / phase) * phase  # so many still, but equal
    spans = []
    for start in range(0, size, core):
        stop = min(start + core, size)
        first = max(0, (start - reach) // phase * phase)
        while first and axis.padded(size - first) != axis.padded(size) - first:
            first -= phase  # only where the least size forces more padding on the tile than on the image
        inner = slice(_first_cell(axis, start, cells), _first_cell(axis, stop, cells) if stop < size else cells)
        valid = slice(max(inner.start - overlap, 0), min(inner.stop + overlap, cells))
        read = slice(first, min(stop + reach, size))
        spans.append(Span(slice(start, stop), read, inner, valid, first // axis.stride))
    return tuple(spans)


def _first_cell(axis: AxisGeometry, pixel: int, cells: int) -> int:
    """The first cell that is centred at a pixel or behind it; the very first at the image's edge."""
    return 0 if pixel == 0 else min(max(math.ceil((pixel - axis.centre(0)) / axis.stride), 0), cells)

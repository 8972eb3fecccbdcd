"""Where to cut an image so that its tiles, segmented one by one, give the result of the whole image.

A tile provides the result for its core, and the net reads the core with its surroundings:

- on every side the margin of real pixels that the class of a pixel may depend on (`AxisGeometry.margin`), cut off where
  the image ends: there the net pads the tile exactly as it pads the image, in the same place;
- beginning at a pixel that is a multiple of the phase, so that the tile's cells coincide with cells of the image. The
  phase is a multiple of the net's alignment; if the class map takes the class of the nearest cell, of two strides as
  well, because a pixel half-way between two cells takes the even one;
- at the image's end, beginning early enough for the padding of the tile to end where that of the image ends: the net's
  minimum size may make this impossible for a short tile.

For a net with global context (`ModelInfo.global_context`) the result for a tile depends on the whole tile. Its tiles
overlap by more than the margin, and are blended (`fcnseg.blending`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fcnseg.errors import UsageError
from fcnseg.geometry import AxisGeometry
from fcnseg.model_file import ModelInfo

_LARGEST_CORE = 3072
"""Ten million pixels: the margins of most nets add little, and progress can be shown between tiles."""
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in the image's pixels and cells.

    Attributes:
        core: Pixels that the tile provides the result for.
        read: Pixels that the net reads.
        cells: Cells of the core: those centred in it, and at the image's ends the outermost too.
        valid: Cells used from this tile; more than `cells` if tiles overlap to be blended.
        first_cell: The index in the image of the tile's cell 0.
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
        """The core's cells, by their index in the tile."""
        return slice(self.cells.start - self.first_cell, self.cells.stop - self.first_cell)

    @property
    def valid_in_tile(self) -> slice:
        """The valid cells, by their index in the tile."""
        return slice(self.valid.start - self.first_cell, self.valid.stop - self.first_cell)


@dataclass(frozen=True)
class Tiling:
    """How an image is cut for one model.

    Attributes:
        info: The metadata of the model.
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
        """Whether the result is that of the whole image: the net has no global context, or there is one tile."""
        return len(self) == 1 or not self.info.global_context

    @property
    def notice(self) -> str | None:
        """A line for the user about a result that is not exact; None if it is exact."""
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
        """Padded pixels of the largest tile, to which the working memory is proportional."""
        rows, columns = self._padded_sizes
        return max(rows) * max(columns)

    @property
    def _padded_sizes(self) -> tuple[list[int], list[int]]:
        """Padded rows of each row of tiles, and padded columns of each column."""
        geometry = self.info.geometry
        rows = [geometry.y.padded(span.read.stop - span.read.start) for span in self.rows]
        return rows, [geometry.x.padded(span.read.stop - span.read.start) for span in self.columns]


def plan_tiles(info: ModelInfo, height: int, width: int, tile: int | None) -> Tiling:
    """Cut an image into tiles.

    Args:
        info: The metadata of the model.
        height: The image's rows, at least 1.
        width: The image's columns, at least 1.
        tile: Most rows and columns of a core, rounded up to a multiple of the phase; None does not cut the image. Cores
            are made equal; along an axis where the image fits a core with its margins, it is not cut.

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
    """Choose the fewest tiles, of up to 3072 pixels a side, that fit into memory: fewer tiles compute less twice.

    Args:
        info: The metadata of the model.
        height: The image's rows.
        width: The image's columns.
        max_pixels: Padded pixels that a run has memory for: the available bytes divided by `Probe.bytes_per_pixel`, or
            by `plain_bytes_per_pixel` if no confidence is requested.

    Returns:
        Rows and columns of a core for `plan_tiles`; None if the whole image fits.

    Raises:
        UsageError: Not even the smallest tile fits.
    """
    if math.prod(info.geometry.padded(height, width)) <= max_pixels:
        return None
    step = min(_phase(info, info.geometry.y), _phase(info, info.geometry.x))
    most = max(1, _LARGEST_CORE // step)
    # For 1, 2, 3... tiles along a side. A tile of two has one margin; one of three may have two, and so be larger.
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
    """Return the step in pixels by which a tile may be shifted without a change of its result."""
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
    core = math.ceil(size / count / phase) * phase  # the same number of cores, but of equal size
    spans = []
    for start in range(0, size, core):
        stop = min(start + core, size)
        first = max(0, (start - reach) // phase * phase)
        while first and axis.padded(size - first) != axis.padded(size) - first:
            first -= phase  # only if the minimum size forces more padding on the tile than on the image
        inner = slice(_first_cell(axis, start, cells), _first_cell(axis, stop, cells) if stop < size else cells)
        valid = slice(max(inner.start - overlap, 0), min(inner.stop + overlap, cells))
        read = slice(first, min(stop + reach, size))
        spans.append(Span(slice(start, stop), read, inner, valid, first // axis.stride))
    return tuple(spans)


def _first_cell(axis: AxisGeometry, pixel: int, cells: int) -> int:
    """Return the first cell that is centred at or after a pixel; cell 0 at the image's edge."""
    return 0 if pixel == 0 else min(max(math.ceil((pixel - axis.centre(0)) / axis.stride), 0), cells)

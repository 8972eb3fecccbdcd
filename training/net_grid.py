"""Derives the grids of a net's maps, and how their sizes depend on the image's size."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fcnseg.errors import ArchitectureError
from training.grid import Grid, Lattice, lattices
from training.grid_tracer import tensors_in, trace_grids
from training.tracing import blank_image, fake_tensors


@dataclass(frozen=True)
class MapGrid:
    """The positions of a map's cells, their receptive fields, and their number.

    Attributes:
        grid: The receptive fields of the cells.
        lattice: (y, x) lattices.
        extra_cells: (y, x) cells beyond input size / stride, for inputs that are multiples of the alignment.
    """

    grid: Grid
    lattice: tuple[Lattice, Lattice]
    extra_cells: tuple[int, int]


@dataclass(frozen=True)
class NetGrid:
    """The geometry of a net, from its image to its maps.

    Attributes:
        maps: The maps that scores are read from; the last is the net's output.
        grid: The receptive fields of the output's cells.
        alignment: (y, x) coarsest stride.
        minimum: (y, x) smallest input size, a multiple of the alignment.
        global_context: Modules through which a cell depends on the whole image.
        padded: Whether any layer reads beyond its map's edge, so that cells near the border depend on the padding.
        channels: Channels of the net's output, K.
    """

    maps: tuple[MapGrid, ...]
    grid: Grid
    alignment: tuple[int, int]
    minimum: tuple[int, int]
    global_context: tuple[str, ...]
    padded: bool
    channels: int


def derive_net_grid(net: nn.Module, native: tuple[int, int], channels: int = 3) -> NetGrid:
    """Derive the grids of a net's maps, and how their sizes depend on the image's size.

    Args:
        net: A module from (N, C, H, W) float to (N, K, h, w), or to a tuple of such maps; in eval mode.
        native: (height, width) at which the net is known to work.
        channels: Channels of the image, C.

    Raises:
        ArchitectureError: A map has no constant stride.
    """
    tracer, output = trace_grids(net, *native, channels)
    maps = list(tensors_in((output,)))
    grids = [tracer.grid(tensor) if tracer.is_map(tensor) else None for tensor in maps]
    align = tracer.alignment
    # A window attention does not shift windows on a map of one window, and one graph cannot do both: so two or more.
    least = 2 if tracer.shifts_windows else 1
    roomy = [max(least, -(-size // a)) * a for size, a in zip(native, align, strict=True)]
    height = _smallest(lambda size: _map_sizes(net, (size, roomy[1]), channels), roomy[0], align[0], least)
    width = _smallest(lambda size: _map_sizes(net, (roomy[0], size), channels), roomy[1], align[1], least)
    while _map_sizes(net, (height, width), channels) is None and (height, width) < tuple(roomy):
        height, width = min(height + align[0], roomy[0]), min(width + align[1], roomy[1])
    # One alignment larger, and far beyond the native size, where a net may crop its maps or run out of positions.
    larger = [(height + align[0], width + align[1]), (4 * roomy[0] + align[0], 4 * roomy[1] + align[1])]
    small, *sizes = (_sizes_where_it_slides(net, native, size, channels) for size in ((height, width), *larger))
    found = []
    for i, grid in enumerate(grids):
        if grid is None or grid.y.stride.denominator != 1 or grid.x.stride.denominator != 1:
            raise ArchitectureError("the net's output is not a map whose cells stand at a constant stride of pixels")
        lattice = lattices(grid)
        (h, w), (y, x) = small[i], (axis.stride for axis in lattice)
        for size, cells in zip(larger, sizes, strict=True):
            if cells[i] != (h + (size[0] - height) // y, w + (size[1] - width) // x):
                raise ArchitectureError(
                    f"the map does not grow by whole cells: {h}x{w} cells at {height}x{width} pixels,"
                    f" {cells[i][0]}x{cells[i][1]} at {size[0]}x{size[1]}"
                )
        found.append(MapGrid(grid, lattice, (h - height // y, w - width // x)))
    answer = grids[-1] or Grid()
    context, channels = tuple(tracer.global_context), maps[-1].shape[1]
    return NetGrid(tuple(found), answer, align, (height, width), context, tracer.padded, channels)


def _smallest(sizes: Callable[[int], object | None], works: int, align: int, least: int) -> int:
    """Return the smallest multiple of the alignment, at least `least` times it, that has map sizes; else `works`."""
    return next((size for size in range(least * align, works, align) if sizes(size) is not None), works)


def _sizes_where_it_slides(
    net: nn.Module, native: tuple[int, int], size: tuple[int, int], channels: int
) -> list[tuple[int, int]]:
    """Return the (h, w) of the maps for an input size.

    Raises:
        ArchitectureError: The net does not accept this size.
    """
    sizes = _map_sizes(net, size, channels)
    if sizes is None:
        raise ArchitectureError(
            f"the net works at {native[0]}x{native[1]} pixels but not at {size[0]}x{size[1]}, so it cannot slide over"
            " images of other sizes"
        )
    return sizes


def _map_sizes(net: nn.Module, size: tuple[int, int], channels: int) -> list[tuple[int, int]] | None:
    """Return the (h, w) of the maps for an input size, or None if the net does not accept it."""
    try:
        with fake_tensors():
            sizes = [(t.shape[2], t.shape[3]) for t in tensors_in((net(blank_image(net, (1, channels, *size))),))]
    except (RuntimeError, ValueError):  # what PyTorch raises when a map is smaller than a kernel, or a single cell
        return None
    return sizes if min(min(s) for s in sizes) > 0 else None

"""What each operator that PyTorch dispatches does to the grid of a map.

A rule takes what is known of its first map and the operator's arguments, and returns the grid of its output; None where
the output is pooled over the whole map. Operators without a rule work cell by cell where they leave a map its size;
where they do not, nothing is known of what their output sees.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from fcnseg.errors import ArchitectureError
from training.grid import AxisGrid, Grid


@dataclass(frozen=True)
class Trace:
    """What is known of a tensor: its grid, its (h, w), and which of its axes they are (None: merged with others)."""

    grid: Grid
    size: tuple[int, int]
    axes: tuple[int, int] | None


def pair(value: Any) -> tuple[int, int]:
    """Rows and columns of what is given for both, or for each."""
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return (values[0], values[-1])


def _argument(args: tuple[Any, ...], index: int, default: Any) -> Any:
    return args[index] if len(args) > index and args[index] not in ([], ()) else default


def both(trace: Trace, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Grid:
    """The grid behind a convolution or pooling of the given (y, x) values, or single ones for both axes."""
    (ky, kx), (sy, sx), (py, px), (dy, dx) = map(pair, (kernel, stride, padding, dilation))
    return Grid(trace.grid.y.convolved(ky, sy, py, dy), trace.grid.x.convolved(kx, sx, px, dx))


def _convolution(trace: Trace, args: tuple[Any, ...]) -> Grid:
    kernel = tuple(args[1].shape[2:])
    stride, padding, dilation, is_transposed = args[3:7]
    if not is_transposed:
        return both(trace, kernel, stride, padding, dilation)
    (ky, kx), (sy, sx), (py, px) = map(pair, (kernel, stride, padding))
    return Grid(trace.grid.y.transposed(ky, sy, py), trace.grid.x.transposed(kx, sx, px))


def _max_pool(trace: Trace, args: tuple[Any, ...]) -> Grid:
    return both(trace, args[1], _argument(args, 2, args[1]), _argument(args, 3, 0), _argument(args, 4, 1))


def _avg_pool(trace: Trace, args: tuple[Any, ...]) -> Grid:
    return both(trace, args[1], _argument(args, 2, args[1]), _argument(args, 3, 0), 1)


def _adaptive_pool(trace: Trace, args: tuple[Any, ...]) -> Grid | None:
    wanted, size = pair(args[1]), trace.size
    if wanted == size:
        return trace.grid
    if wanted == (1, 1):
        return None
    raise ArchitectureError(
        f"an adaptive pooling of a {size[0]}x{size[1]} map to {wanted[0]}x{wanted[1]} cells has no constant stride"
    )


def _reduction(trace: Trace, args: tuple[Any, ...]) -> Grid | None:
    if trace.axes is None or any(axis in trace.axes for axis in _summed_axes(args)):
        return None
    return trace.grid


def _summed_axes(args: tuple[Any, ...]) -> list[int]:
    rank = len(args[0].shape)
    axes = _argument(args, 1, None)
    if axes is None:
        return list(range(rank))
    return [axis % rank for axis in (axes if isinstance(axes, (list, tuple)) else [axes])]


def reduced_axes(axes: tuple[int, int], args: tuple[Any, ...]) -> tuple[int, int]:
    """Where the spatial axes are after a reduction over other axes."""
    if _argument(args, 2, False):  # keepdim
        return axes
    summed = _summed_axes(args)
    y, x = (axis - sum(s < axis for s in summed) for axis in axes)
    return y, x


def _pad(trace: Trace, args: tuple[Any, ...]) -> Grid:
    rank, before = len(args[0].shape), args[1][::2]  # cells before the first, of the last axis first
    top, left = (before[rank - 1 - axis] if rank - 1 - axis < len(before) else 0 for axis in trace.axes or (0, 0))
    return Grid(trace.grid.y.shifted(-top), trace.grid.x.shifted(-left))


def _slice(trace: Trace, args: tuple[Any, ...]) -> Grid:
    rank = len(args[0].shape)
    axis, start, step = _argument(args, 1, 0) % rank, _argument(args, 2, 0) or 0, _argument(args, 4, 1)
    grid = trace.grid
    if trace.axes is not None and axis == trace.axes[0]:
        return replace(grid, y=replace(grid.y.shifted(start % trace.size[0]), stride=grid.y.stride * step))
    if trace.axes is not None and axis == trace.axes[1]:
        return replace(grid, x=replace(grid.x.shifted(start % trace.size[1]), stride=grid.x.stride * step))
    return grid


def _bilinear(trace: Trace, args: tuple[Any, ...]) -> Grid:
    scale = _whole_scale(trace, args)
    if args[2]:  # align_corners
        raise ArchitectureError("enlarging with align_corners stretches the map, so it has no constant stride")
    return Grid(_between(trace.grid.y, scale[0]), _between(trace.grid.x, scale[1]))


def _between(axis: AxisGrid, scale: int) -> AxisGrid:
    """The grid behind linear interpolation: cell j lies between the two cells around (j + 1/2) / scale - 1/2."""
    reach_before = axis.stride * (Fraction(3, 2) - Fraction(1, scale))
    return AxisGrid(axis.stride / scale, axis.first - reach_before, axis.last + axis.stride / 2)


def _nearest(trace: Trace, args: tuple[Any, ...]) -> Grid:
    sy, sx = _whole_scale(trace, args)
    return Grid(trace.grid.y.transposed(sy, sy, 0), trace.grid.x.transposed(sx, sx, 0))


def _whole_scale(trace: Trace, args: tuple[Any, ...]) -> tuple[int, int]:
    (height, width), (h, w) = args[1], trace.size
    if height % h or width % w:
        raise ArchitectureError(f"enlarging a {h}x{w} map to {height}x{width} has no constant stride")
    return height // h, width // w


def contracts_space(name: str, args: tuple[Any, ...], traces: "dict[int, Trace | str]") -> bool:
    """Whether a matrix product sums over the cells of a map, as attention does."""
    if name not in _PRODUCTS:
        return "scaled_dot_product" in name
    for operand, axis in zip(args[_PRODUCTS[name] :], (-1, -2), strict=False):
        trace = traces.get(id(operand))
        if not isinstance(trace, Trace):
            continue
        rank = len(operand.shape)
        if trace.axes is not None and axis % rank in trace.axes:
            return True
        # Axes that were merged are known by their size alone; the one that holds the cells is not the other.
        cells, others = math.prod(trace.size), [n for i, n in enumerate(operand.shape) if i != axis % rank]
        if trace.axes is None and operand.shape[axis] == cells and not any(n % cells == 0 for n in others):
            return True
    return False


def mixes_space(name: str, args: tuple[Any, ...], trace: Trace) -> bool:
    """Whether an operator that leaves a map its size lets cells depend on all cells along an axis."""
    return _reorders_space(name, args, trace) or _normalises_space(name, args, trace)


def _reorders_space(name: str, args: tuple[Any, ...], trace: Trace) -> bool:
    """Whether an operator takes values from elsewhere along a spatial axis."""
    if name not in _ALONG or trace.axes is None:
        return False
    axes = _argument(args, _ALONG[name], None)
    if axes is None:
        return True
    rank = len(args[0].shape)
    return any(axis % rank in trace.axes for axis in (axes if isinstance(axes, (list, tuple)) else [axes]))


def _normalises_space(name: str, args: tuple[Any, ...], trace: Trace) -> bool:
    """Whether a normalisation's statistics are taken over the cells of a map."""
    if name == "native_group_norm":
        return True
    if name in {"native_batch_norm", "_native_batch_norm_legit"}:
        return bool(args[5] if name == "native_batch_norm" else args[-3])  # instance norm, in terms of batches
    if name not in {"native_layer_norm", "_softmax"}:
        return False
    rank = len(args[0].shape)
    first = rank - len(args[1]) if name == "native_layer_norm" else args[1] % rank
    normalised = range(first, rank if name == "native_layer_norm" else first + 1)
    if trace.axes is None:
        return any(args[0].shape[axis] == math.prod(trace.size) for axis in normalised)
    return any(axis in trace.axes for axis in normalised)


_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Matrix products, and the position of their first factor."""
_ALONG = {
    "flip": 1, "roll": 2, "cumsum": 1, "cumprod": 1, "cummax": 1, "cummin": 1, "logcumsumexp": 1, "sort": 1,
    "index_select": 1, "gather": 1,
}  # fmt: skip
"""Operators that take values from elsewhere along axes, and the position of these."""

RULES: dict[str, Callable[[Trace, tuple[Any, ...]], Grid | None]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    "_adaptive_avg_pool2d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_pool,
    "mean": _reduction,
    "amax": _reduction,
    "amin": _reduction,
    "max": _reduction,
    "min": _reduction,
    "sum": _reduction,
    "constant_pad_nd": _pad,
    "reflection_pad2d": _pad,
    "replication_pad2d": _pad,
    "slice": _slice,
    "upsample_nearest2d": _nearest,
    "upsample_bilinear2d": _bilinear,
}
REDUCTIONS = {"mean", "amax", "amin", "max", "min", "sum"}
MOVES = {"view", "_unsafe_view", "reshape", "permute", "transpose", "squeeze", "flatten"}
_AXES_ADDED = {"stack": 1, "unsqueeze": 1, "select": -1, "unbind": -1}
"""Operators that put an axis in or take one out, and by how much the number of axes grows."""


def _renumbered(axes: tuple[int, int] | None, name: str, args: tuple[Any, ...]) -> tuple[int, int] | None:
    """Where the spatial axes are behind an operator without a rule; None where one of them is taken out."""
    if axes is None or name not in _AXES_ADDED:
        return axes
    change = _AXES_ADDED[name]
    rank = len((args[0][0] if name == "stack" else args[0]).shape)
    changed = _argument(args, 1, 0) % (rank + max(change, 0))
    if change < 0 and changed in axes:
        return None
    # A new axis pushes back the one in whose place it stands; one that is taken out draws up those behind it.
    y, x = (axis + change if axis >= changed else axis for axis in axes)
    return y, x


def kept(trace: Trace, name: str, args: tuple[Any, ...], output: Tensor) -> Trace | None:
    """What an operator without a rule leaves of a map; None where it changes its size, nobody knows how."""
    axes = _renumbered(trace.axes, name, args)
    if axes is not None and (output.ndim <= axes[1] or tuple(output.shape[axis] for axis in axes) != trace.size):
        return None
    return replace(trace, axes=axes)


def moved(trace: Trace, args: tuple[Any, ...], output: Tensor, name: str) -> Trace:
    """Follow the spatial axes through an operator that only moves or regroups axes."""
    if name in {"permute", "transpose"} and trace.axes is not None:
        rank = len(output.shape)
        if name == "permute":
            order = [a % rank for a in args[1]]
        else:
            order = list(range(rank))
            a, b = args[1] % rank, args[2] % rank
            order[a], order[b] = order[b], order[a]
        return replace(trace, axes=(order.index(trace.axes[0]), order.index(trace.axes[1])))
    shape = tuple(output.shape)
    places = [i for i in range(len(shape) - 1) if shape[i : i + 2] == trace.size]
    if trace.axes is not None:
        # Regrouping keeps the order of the values, and with it how many there are before the spatial axes.
        before = math.prod(args[0].shape[: trace.axes[0]])
        places = [i for i in places if math.prod(shape[:i]) == before]
    return replace(trace, axes=(places[-1], places[-1] + 1) if places else None)


def looks_beyond(before: Trace, grid: Grid, size: tuple[int, int]) -> bool:
    """Whether the cells of a map of `size` on `grid` see more than the map before them does."""
    for axis, was, cells, cells_before in zip(
        (grid.y, grid.x), (before.grid.y, before.grid.x), size, before.size, strict=True
    ):
        last, last_before = (a.last + a.stride * (n - 1) for a, n in ((axis, cells), (was, cells_before)))
        if axis.first < was.first or last > last_before:
            return True
    return False

"""How each operator that PyTorch dispatches changes the grid of a map.

A rule takes the trace of its first map and the operator's arguments, and returns the grid of the output, or None if the
output is pooled over the whole map. An operator without a rule is taken to work cell by cell if it keeps the map's
size; if it does not, the receptive field of its output is unknown.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

from torch import Tensor

from fcnseg.errors import ArchitectureError
from training.grid import AxisGrid, Grid


@dataclass(frozen=True)
class Trace:
    """What is known about a tensor.

    Attributes:
        grid: The grid of the map that the tensor holds.
        size: (h, w) of that map.
        axes: The tensor's axes of h and w; None if they are merged with others, or cut into blocks.
        cut: If both are cut into blocks, the axes of (rows of blocks, rows of a block, columns of blocks, columns of a
            block).
    """

    grid: Grid
    size: tuple[int, int]
    axes: tuple[int, int] | None
    cut: tuple[int, int, int, int] | None = None


def pair(value: Any) -> tuple[int, int]:
    """Return the (y, x) values of an argument that is given as one number or as two."""
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return (values[0], values[-1])


def _argument(args: tuple[Any, ...], index: int, default: Any) -> Any:
    return args[index] if len(args) > index and args[index] not in ([], ()) else default


def both(trace: Trace, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Grid:
    """The grid after a convolution or pooling, whose values are given as (y, x) or as one number for both axes."""
    (ky, kx), (sy, sx), (py, px), (dy, dx) = map(pair, (kernel, stride, padding, dilation))
    return Grid(trace.grid.y.convolved(ky, sy, py, dy), trace.grid.x.convolved(kx, sx, px, dx))


def _convolution(trace: Trace, args: tuple[Any, ...]) -> Grid:
    kernel, (stride, padding, dilation, is_transposed) = args[1].shape[2:], args[3:7]
    if len(kernel) > 2:  # a 3D convolution: take the two axes that are the map's
        kernel, stride, padding, dilation = (_along(trace, v) for v in (kernel, stride, padding, dilation))
    if not is_transposed:
        return both(trace, kernel, stride, padding, dilation)
    (ky, kx), (sy, sx), (py, px), (dy, dx) = map(pair, (kernel, stride, padding, dilation))
    return Grid(trace.grid.y.transposed(ky, sy, py, dy), trace.grid.x.transposed(kx, sx, px, dx))


def _along(trace: Trace, values: Any) -> tuple[int, int]:
    """Of three values for the axes 2, 3 and 4, return those for the map's rows and columns."""
    y, x = trace.axes or (2, 3)
    return values[y - 2], values[x - 2]


def _max_pool(trace: Trace, args: tuple[Any, ...]) -> Grid:
    return both(trace, args[1], _argument(args, 2, args[1]), _argument(args, 3, 0), _argument(args, 4, 1))


def _avg_pool(trace: Trace, args: tuple[Any, ...]) -> Grid:
    return both(trace, args[1], _argument(args, 2, args[1]), _argument(args, 3, 0), 1)


def _adaptive_pool(trace: Trace, args: tuple[Any, ...]) -> Grid | None:
    wanted, size = pair(args[1]), trace.size
    if wanted == size:
        return trace.grid
    if all(w in (1, n) for w, n in zip(wanted, size, strict=True)):
        return None  # along one axis or both
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


def _interpolated(trace: Trace, args: tuple[Any, ...], around: int) -> Grid:
    """The grid after interpolation between `around` cells before a position and as many after it."""
    sizes = zip(trace.size, args[1], strict=True)
    if args[2]:  # align_corners
        raise ArchitectureError("enlarging with align_corners stretches the map, so it has no constant stride")
    y, x = (_between(axis, *pair, around) for axis, pair in zip((trace.grid.y, trace.grid.x), sizes, strict=True))
    return Grid(y, x)


def _between(axis: AxisGrid, cells: int, wanted: int, around: int) -> AxisGrid:
    """The grid of values interpolated at positions (j + 1/2) * step - 1/2, in cells, from `around` cells each way."""
    step = _step(cells, wanted)
    place = step / 2 - Fraction(1, 2)
    # The farthest cell that is read: for an even factor no position lies on a cell, for an odd one some do.
    even = (step.numerator * step.denominator) % 2 == 0
    reach = around - Fraction(1, 2 * step.denominator) if even or step == 1 else Fraction(around)
    return AxisGrid(
        axis.stride * step, axis.first + axis.stride * (place - reach), axis.last + axis.stride * (place + reach)
    )


def _sampled(trace: Trace, args: tuple[Any, ...], phase: Fraction | int) -> Grid:
    """The grid after nearest-neighbour resizing: every step-th cell, from `phase` of a step on, or repeated cells."""
    axes = []
    for axis, cells, wanted in zip((trace.grid.y, trace.grid.x), trace.size, args[1], strict=True):
        step = _step(cells, wanted)
        if step.denominator > 1:
            axes.append(axis.transposed(step.denominator, step.denominator, 0))
        else:
            axes.append(replace(axis.shifted(int(step * phase)), stride=axis.stride * step))
    return Grid(*axes)


def _step(cells: int, wanted: int) -> Fraction:
    """Return the cells from one interpolated value to the next: a whole number, or 1 over a whole number."""
    step = Fraction(cells, wanted)
    if 1 not in (step.numerator, step.denominator):
        raise ArchitectureError(f"resizing {cells} cells along an axis to {wanted} has no constant stride")
    return step


def _pixel_unshuffle(trace: Trace, args: tuple[Any, ...]) -> Grid:
    return both(trace, args[1], args[1], 0, 1)


def _pixel_shuffle(trace: Trace, args: tuple[Any, ...]) -> Grid:
    return Grid(trace.grid.y.transposed(args[1], args[1], 0), trace.grid.x.transposed(args[1], args[1], 0))


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
        # Merged axes are recognised only by their size, so no other axis may have a size that could hold the cells too.
        cells, others = math.prod(trace.size), [n for i, n in enumerate(operand.shape) if i != axis % rank]
        if trace.axes is None and operand.shape[axis] == cells and not any(n % cells == 0 for n in others):
            return True
    return False


def mixes_space(name: str, args: tuple[Any, ...], trace: Trace) -> bool:
    """Whether an operator that keeps a map's size makes cells depend on all cells along an axis."""
    return name in _ANYWHERE or _reorders_space(name, args, trace) or _normalises_space(name, args, trace)


def _reorders_space(name: str, args: tuple[Any, ...], trace: Trace) -> bool:
    """Whether an operator takes values from other positions along a spatial axis."""
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
    if name not in {"native_layer_norm", "_softmax", "_log_softmax"}:
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
"""Operators that take values from other positions along axes, and the index of the argument that names the axes."""

_ANYWHERE = {"deform_conv2d", "grid_sampler_2d"}
"""Operators that take values from positions that are computed."""

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
    "upsample_nearest2d": partial(_sampled, phase=0),
    "_upsample_nearest_exact2d": partial(_sampled, phase=Fraction(1, 2)),
    "upsample_bilinear2d": partial(_interpolated, around=1),
    "upsample_bicubic2d": partial(_interpolated, around=2),
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
}
REDUCTIONS = {"mean", "amax", "amin", "max", "min", "sum"}
_AXES_ADDED = {"stack": 1, "unsqueeze": 1, "select": -1, "unbind": -1}
"""Operators that insert or remove an axis, and by how much the number of axes grows."""


def _renumbered(axes: tuple[int, int] | None, name: str, args: tuple[Any, ...]) -> tuple[int, int] | None:
    """Return the spatial axes after an operator without a rule; None if it removes one of them."""
    if axes is None or name not in _AXES_ADDED:
        return axes
    change = _AXES_ADDED[name]
    rank = len((args[0][0] if name == "stack" else args[0]).shape)
    changed = _argument(args, 1, 0) % (rank + max(change, 0))
    if change < 0 and changed in axes:
        return None
    # A new axis moves the axes from its position on by one; a removed axis moves those after it back by one.
    y, x = (axis + change if axis >= changed else axis for axis in axes)
    return y, x


def kept(trace: Trace, name: str, args: tuple[Any, ...], output: Tensor) -> Trace | None:
    """Return the trace after an operator without a rule; None if it changes the map's size in an unknown way."""
    axes = _renumbered(trace.axes, name, args)
    if axes is not None and (output.ndim <= axes[1] or tuple(output.shape[axis] for axis in axes) != trace.size):
        return None
    first = args[0]
    same = isinstance(first, Tensor) and first.shape == output.shape
    return replace(trace, axes=axes, cut=trace.cut if same else None)


def looks_beyond(before: Trace, grid: Grid, size: tuple[int, int]) -> bool:
    """Whether the cells of a map of `size` on `grid` depend on pixels beyond those of the map before."""
    for axis, was, cells, cells_before in zip(
        (grid.y, grid.x), (before.grid.y, before.grid.x), size, before.size, strict=True
    ):
        last, last_before = (a.last + a.stride * (n - 1) for a, n in ((axis, cells), (was, cells_before)))
        if axis.first < was.first or last > last_before:
            return True
    return False

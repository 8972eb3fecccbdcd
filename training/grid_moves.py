"""Follows a map's spatial axes when a tensor's axes are permuted, split or merged.

Splitting both spatial axes into blocks, and merging the rows and columns within blocks into the channels, is a pixel
unshuffle, however the views are written; merging an axis of copies or of channels into a spatial axis is a pixel
shuffle. Splits that are undone, as in window attentions, leave the map unchanged.
"""

import math
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from training.grid import Grid
from training.grid_rules import Trace, both

MOVES = {"view", "_unsafe_view", "reshape", "permute", "transpose", "squeeze", "flatten"}
_Axes = TypeVar("_Axes", tuple[int, int], tuple[int, int, int, int])


def moved(trace: Trace, args: tuple[Any, ...], output: Tensor, name: str) -> Trace:
    """Follow the spatial axes through an operator that only moves or regroups axes."""
    source, shape = tuple(args[0].shape), tuple(output.shape)
    if name in {"permute", "transpose"}:
        order = _order(name, args, len(shape))
        return replace(trace, axes=_reordered(trace.axes, order), cut=_reordered(trace.cut, order))
    places = [i for i in range(len(shape) - 1) if shape[i : i + 2] == trace.size]
    if trace.axes is not None:
        # Regrouping keeps the order of the values, and so the number of elements in the axes before the spatial ones.
        before = math.prod(source[: trace.axes[0]])
        places = [i for i in places if math.prod(shape[:i]) == before]
    if places:
        return replace(trace, axes=(places[-1], places[-1] + 1), cut=None)
    return _folded(trace, source, shape) or _spread(trace, source, shape) or _cut(trace, source, shape)


def _order(name: str, args: tuple[Any, ...], rank: int) -> list[int]:
    """Return, for each axis, which axis it was before."""
    if name == "permute":
        return [a % rank for a in args[1]]
    order = list(range(rank))
    a, b = args[1] % rank, args[2] % rank
    order[a], order[b] = order[b], order[a]
    return order


def _reordered(axes: _Axes | None, order: list[int]) -> _Axes | None:
    return None if axes is None else tuple(order.index(axis) for axis in axes)  # type: ignore[return-value]


def _folded(trace: Trace, source: tuple[int, ...], shape: tuple[int, ...]) -> Trace | None:
    """Return the map of blocks, if the rows and columns within blocks are merged into other axes."""
    if trace.cut is None or len(shape) >= len(source):
        return None
    rows, block_rows, columns, block_columns = trace.cut
    size, before = (source[rows], source[columns]), math.prod(source[:rows])
    if columns != rows + 1:
        return None
    for i in range(len(shape) - 1):
        if shape[i : i + 2] == size and math.prod(shape[:i]) == before:
            block = (source[block_rows], source[block_columns])
            return Trace(both(trace, block, block, 0, 1), size, (i, i + 1))
    return None


def _spread(trace: Trace, source: tuple[int, ...], shape: tuple[int, ...]) -> Trace | None:
    """Return the finer map, if spatial axes were merged with the axes after them."""
    if trace.axes is None:
        return None
    y, x = trace.axes
    behind = source[x + 1 : x + 2]
    by, rest = (source[y + 1] if x == y + 2 else 1), source[x + 1 :]
    for bx, others in ((1, rest), *((b, rest[1:]) for b in behind)):
        size = (source[y] * by, source[x] * bx)
        if x - y in (1, 2) and shape == (*source[:y], *size, *others):
            return Trace(Grid(trace.grid.y.transposed(by, by, 0), trace.grid.x.transposed(bx, bx, 0)), size, (y, y + 1))
    return None


def _cut(trace: Trace, source: tuple[int, ...], shape: tuple[int, ...]) -> Trace:
    """Return the map whose spatial axes are split into blocks, or merged with others."""
    lost = replace(trace, axes=None, cut=None)
    if trace.axes is None:
        return lost
    y, x = trace.axes
    around = (shape[:y], shape[y + 4 :]) == (source[:y], source[x + 1 :])
    sizes = (math.prod(shape[y : y + 2]), math.prod(shape[y + 2 : y + 4]))
    return replace(lost, cut=(y, y + 1, y + 2, y + 3)) if x == y + 1 and around and sizes == trace.size else lost

"""Grids: where each cell of each map looks, derived by running a net without its numbers.

Along one axis, cell i of a map depends on the pixels `first + stride * i` to `last + stride * i` and on no others; its
centre is the middle of that interval and the interval's length is its receptive field. A convolution with kernel k,
stride s, left padding p and dilation d turns (stride, first, last) into

    (stride * s, first - stride * p, last + stride * (d * (k - 1) - p))

and where branches meet the interval is their union. The net runs on fake tensors (shapes without storage), and every
operator that PyTorch dispatches is followed, so that no architecture needs a rule of its own.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.swin_transformer import ShiftedWindowAttention

from fcnseg.errors import ArchitectureError

_ORIGIN = Fraction(0)
_MOST_MULTIPLES = 64


@dataclass(frozen=True)
class AxisGrid:
    """Which pixels the cells of a map see along one axis.

    Attributes:
        stride: Pixels from one cell to the next; a fraction above the image's resolution.
        first: First pixel that cell 0 depends on; negative where padding stands in for it.
        last: Last pixel that cell 0 depends on.
    """

    stride: Fraction = Fraction(1)
    first: Fraction = _ORIGIN
    last: Fraction = _ORIGIN

    @property
    def offset(self) -> float:
        """Pixel coordinate of cell 0's centre."""
        return float((self.first + self.last) / 2)

    @property
    def field(self) -> int:
        """Receptive field in pixels."""
        return int(self.last - self.first) + 1

    def convolved(self, kernel: int, stride: int, padding: int, dilation: int) -> "AxisGrid":
        """The grid behind a convolution or pooling; `padding` counts the cells before the first."""
        return AxisGrid(
            self.stride * stride,
            self.first - self.stride * padding,
            self.last + self.stride * (dilation * (kernel - 1) - padding),
        )

    def transposed(self, kernel: int, stride: int, padding: int) -> "AxisGrid":
        """The grid behind a transposed convolution: cell j depends on cells (j + p - k + 1) / s to (j + p) / s."""
        step = self.stride / stride
        return AxisGrid(step, self.first + step * (padding - kernel + 1), self.last + step * padding)

    def shifted(self, cells: int) -> "AxisGrid":
        """The grid whose cell 0 is this one's cell `cells`."""
        return replace(self, first=self.first + self.stride * cells, last=self.last + self.stride * cells)

    def resampled(self, offset: float, stride: int) -> "AxisGrid":
        """The grid of this map's values interpolated at `offset + stride * t`, from the cells around there."""
        reach_before = Fraction(self.offset) - self.first + self.stride
        reach_behind = self.last - Fraction(self.offset) + self.stride
        return AxisGrid(Fraction(stride), Fraction(offset) - reach_before, Fraction(offset) + reach_behind)

    def joined(self, other: "AxisGrid") -> "AxisGrid":
        """The grid of a map that takes each cell from both grids.

        Raises:
            ArchitectureError: The strides differ.
        """
        if self.stride != other.stride:
            raise ArchitectureError(
                f"maps of stride {self.stride} and {other.stride} are combined cell by cell, so the net has no grid"
            )
        return AxisGrid(self.stride, min(self.first, other.first), max(self.last, other.last))


@dataclass(frozen=True)
class Grid:
    """The grids of both axes."""

    y: AxisGrid = AxisGrid()
    x: AxisGrid = AxisGrid()

    def joined(self, other: "Grid") -> "Grid":
        """The grid of a map that takes each cell from both grids.

        Raises:
            ArchitectureError: The strides differ.
        """
        return Grid(self.y.joined(other.y), self.x.joined(other.x))


@dataclass(frozen=True)
class Lattice:
    """Where the cells of a map lie along one axis: the centre of cell i is pixel `offset + stride * i`."""

    stride: int
    offset: float


def lattices(grid: Grid) -> tuple[Lattice, Lattice]:
    """The (y, x) lattices of a grid whose strides are whole pixels."""
    y, x = (Lattice(int(axis.stride), axis.offset) for axis in (grid.y, grid.x))
    return y, x


@dataclass(frozen=True)
class LayerRecord:
    """What one module call did, for tables.

    Attributes:
        name: The module's path in the net.
        module: The module.
        shape: Shape of its output.
        grid: Grid of its output; None where it has no spatial axes.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    grid: Grid | None


@dataclass(frozen=True)
class _Trace:
    """What is known of a tensor: its grid, its (h, w), and which of its axes they are (None: merged with others)."""

    grid: Grid
    size: tuple[int, int]
    axes: tuple[int, int] | None


class GridTracer(TorchDispatchMode):
    """Follows grids through the operators that run inside `with GridTracer()`.

    Attributes:
        alignment: (y, x) least common multiples of the strides seen.
        global_context: Modules whose output mixes a value pooled over the whole map back into a map.
        padded: Whether any operator looks beyond its map's edge.
        layers: One record per call of a module without children.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alignment = (1, 1)
        self.global_context: list[str] = []
        self.padded = False
        self.layers: list[LayerRecord] = []
        self._traces: dict[int, _Trace | str] = {}  # a name instead of a trace: pooled globally in that module
        self._alive: list[Tensor] = []  # keeps ids unique
        self._module = "the net"
        self._suspended = False

    def start(self, image: Tensor) -> Tensor:
        """Declare an (N, C, H, W) tensor to be the image, grid (1, 0)."""
        self._keep(image, _Trace(Grid(), (image.shape[2], image.shape[3]), (2, 3)))
        return image

    def grid(self, tensor: object) -> Grid | None:
        """The grid of a tensor, or None where it has no spatial axes."""
        known = self._traces.get(id(tensor))
        return known.grid if isinstance(known, _Trace) and known.axes is not None else None

    @contextmanager
    def following(self, net: nn.Module) -> Iterator[None]:
        """Know which module of `net` is running, and record the calls of its childless modules."""
        handles = []
        for name, module in net.named_modules():
            if isinstance(module, ShiftedWindowAttention):
                handles += [
                    module.register_forward_pre_hook(self._enter_attention, prepend=True),
                    module.register_forward_hook(self._leave_attention(name)),
                ]
            elif next(module.children(), None) is None:
                handles += [
                    module.register_forward_pre_hook(self._enter(name)),
                    module.register_forward_hook(self._leave(name)),
                ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: object) -> None:
            self._module = name

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, Tensor) and not self._suspended:
                self.layers.append(LayerRecord(name, module, tuple(output.shape), self.grid(output)))

        return hook

    def _enter_attention(self, _module: nn.Module, _args: object) -> None:
        self._suspended = True

    def _leave_attention(self, name: str) -> Any:
        """A window attention sees its window: at most window - 1 cells before and behind, at whole windows alone."""

        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._suspended = False
            trace = self._traces[id(args[0])]
            if isinstance(trace, _Trace):
                windows: tuple[int, int] = tuple(module.window_size)
                seen = _both(trace, [2 * w - 1 for w in windows], 1, [w - 1 for w in windows], 1)
                self._keep(output, replace(trace, grid=seen), windows)
                self.padded = True
                self.layers.append(LayerRecord(name, module, tuple(output.shape), seen))

        return hook

    def _note_context(self, *modules: str) -> None:
        self.global_context += [m for m in dict.fromkeys(modules) if m not in self.global_context]

    def _keep(self, tensor: Tensor, trace: "_Trace | str", period: tuple[int, int] = (1, 1)) -> None:
        self._traces[id(tensor)] = trace
        self._alive.append(tensor)
        if isinstance(trace, _Trace):
            strides = (trace.grid.y.stride, trace.grid.x.stride)
            self.alignment = tuple(  # type: ignore[assignment]
                math.lcm(a, math.ceil(s * p)) for a, s, p in zip(self.alignment, strides, period, strict=True)
            )

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self._suspended:
            return output
        inputs = [self._traces[id(t)] for t in _tensors(args) if id(t) in self._traces]
        if not inputs:
            return output
        name = func.overloadpacket.__name__
        rule = _RULES.get(name)
        for tensor in _tensors((output,)):
            if id(tensor) in self._traces and any(tensor is t for t in _tensors(args)):
                continue  # in place: the same tensor, the same grid
            self._follow(name, rule, inputs, args, tensor)
        return output

    def _follow(
        self, name: str, rule: Any, inputs: list["_Trace | str"], args: tuple[Any, ...], output: Tensor
    ) -> None:
        maps = [t for t in inputs if isinstance(t, _Trace)]
        pooled = [t for t in inputs if isinstance(t, str)]
        if not maps:
            self._keep(output, pooled[0])
            return
        trace = maps[0]
        if pooled:
            self._note_context(*pooled)
        contracted = _contracts_space(name, args, self._traces)
        if contracted or _normalises_space(name, args, trace):
            self._note_context(self._module)
        if contracted:
            self._keep(output, self._module)
        elif name in _MOVES:
            self._keep(output, _moved(trace, args, output, name))
        elif rule is not None and trace.axes is not None:
            grid = rule(trace, args)
            if grid is None:
                self._keep(output, self._module.rpartition(".")[0] or self._module)
                return
            axes = trace.axes
            if name in _REDUCTIONS:
                axes = _reduced_axes(axes, args)
            size = (output.shape[axes[0]], output.shape[axes[1]])
            self._keep(output, _Trace(grid, size, axes))
            self.padded |= _looks_beyond(trace, grid, size)
        else:
            for other in maps[1:]:
                trace = replace(trace, grid=trace.grid.joined(other.grid), axes=trace.axes or other.axes)
            self._keep(output, trace)


def _looks_beyond(before: _Trace, grid: Grid, size: tuple[int, int]) -> bool:
    """Whether the cells of a map of `size` on `grid` see more than the map before them does."""
    for axis, was, cells, cells_before in zip(
        (grid.y, grid.x), (before.grid.y, before.grid.x), size, before.size, strict=True
    ):
        last, last_before = (a.last + a.stride * (n - 1) for a, n in ((axis, cells), (was, cells_before)))
        if axis.first < was.first or last > last_before:
            return True
    return False


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return (values[0], values[-1])


def _argument(args: tuple[Any, ...], index: int, default: Any) -> Any:
    return args[index] if len(args) > index and args[index] not in ([], ()) else default


def _both(trace: _Trace, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Grid:
    (ky, kx), (sy, sx), (py, px), (dy, dx) = map(_pair, (kernel, stride, padding, dilation))
    return Grid(trace.grid.y.convolved(ky, sy, py, dy), trace.grid.x.convolved(kx, sx, px, dx))


def _convolution(trace: _Trace, args: tuple[Any, ...]) -> Grid:
    kernel = tuple(args[1].shape[2:])
    stride, padding, dilation, is_transposed = args[3:7]
    if not is_transposed:
        return _both(trace, kernel, stride, padding, dilation)
    (ky, kx), (sy, sx), (py, px) = map(_pair, (kernel, stride, padding))
    return Grid(trace.grid.y.transposed(ky, sy, py), trace.grid.x.transposed(kx, sx, px))


def _max_pool(trace: _Trace, args: tuple[Any, ...]) -> Grid:
    return _both(trace, args[1], _argument(args, 2, args[1]), _argument(args, 3, 0), _argument(args, 4, 1))


def _avg_pool(trace: _Trace, args: tuple[Any, ...]) -> Grid:
    return _both(trace, args[1], _argument(args, 2, args[1]), _argument(args, 3, 0), 1)


def _adaptive_pool(trace: _Trace, args: tuple[Any, ...]) -> Grid | None:
    wanted, size = _pair(args[1]), trace.size
    if wanted == size:
        return trace.grid
    if wanted == (1, 1):
        return None
    raise ArchitectureError(
        f"an adaptive pooling of a {size[0]}x{size[1]} map to {wanted[0]}x{wanted[1]} cells has no constant stride"
    )


def _reduction(trace: _Trace, args: tuple[Any, ...]) -> Grid | None:
    if trace.axes is None or any(axis in trace.axes for axis in _summed_axes(args)):
        return None
    return trace.grid


def _summed_axes(args: tuple[Any, ...]) -> list[int]:
    rank = len(args[0].shape)
    axes = _argument(args, 1, None)
    if axes is None:
        return list(range(rank))
    return [axis % rank for axis in (axes if isinstance(axes, (list, tuple)) else [axes])]


def _reduced_axes(axes: tuple[int, int], args: tuple[Any, ...]) -> tuple[int, int]:
    """Where the spatial axes are after a reduction over other axes."""
    if _argument(args, 2, False):  # keepdim
        return axes
    summed = _summed_axes(args)
    y, x = (axis - sum(s < axis for s in summed) for axis in axes)
    return y, x


def _pad(trace: _Trace, args: tuple[Any, ...]) -> Grid:
    rank, before = len(args[0].shape), args[1][::2]  # cells before the first, of the last axis first
    top, left = (before[rank - 1 - axis] if rank - 1 - axis < len(before) else 0 for axis in trace.axes or (0, 0))
    return Grid(trace.grid.y.shifted(-top), trace.grid.x.shifted(-left))


def _slice(trace: _Trace, args: tuple[Any, ...]) -> Grid:
    rank = len(args[0].shape)
    axis, start, step = _argument(args, 1, 0) % rank, _argument(args, 2, 0) or 0, _argument(args, 4, 1)
    grid = trace.grid
    if trace.axes is not None and axis == trace.axes[0]:
        return replace(grid, y=replace(grid.y.shifted(start % trace.size[0]), stride=grid.y.stride * step))
    if trace.axes is not None and axis == trace.axes[1]:
        return replace(grid, x=replace(grid.x.shifted(start % trace.size[1]), stride=grid.x.stride * step))
    return grid


def _nearest(trace: _Trace, args: tuple[Any, ...]) -> Grid:
    (height, width), (h, w) = args[1], trace.size
    if height % h or width % w:
        raise ArchitectureError(f"enlarging a {h}x{w} map to {height}x{width} has no constant stride")
    sy, sx = height // h, width // w
    return Grid(trace.grid.y.transposed(sy, sy, 0), trace.grid.x.transposed(sx, sx, 0))


def _contracts_space(name: str, args: tuple[Any, ...], traces: "dict[int, _Trace | str]") -> bool:
    """Whether a matrix product sums over the cells of a map, as attention does."""
    if name not in _PRODUCTS:
        return "scaled_dot_product" in name
    for operand, axis in zip(args[_PRODUCTS[name] :], (-1, -2), strict=False):
        trace = traces.get(id(operand))
        if not isinstance(trace, _Trace):
            continue
        rank = len(operand.shape)
        if trace.axes is not None and axis % rank in trace.axes:
            return True
        # Axes that were merged are known by their size alone; the one that holds the cells is not the other.
        cells, others = math.prod(trace.size), [n for i, n in enumerate(operand.shape) if i != axis % rank]
        if trace.axes is None and operand.shape[axis] == cells and not any(n % cells == 0 for n in others):
            return True
    return False


def _normalises_space(name: str, args: tuple[Any, ...], trace: _Trace) -> bool:
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

_RULES = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    "_adaptive_avg_pool2d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_pool,
    "mean": _reduction,
    "amax": _reduction,
    "sum": _reduction,
    "constant_pad_nd": _pad,
    "reflection_pad2d": _pad,
    "replication_pad2d": _pad,
    "slice": _slice,
    "upsample_nearest2d": _nearest,
}
_REDUCTIONS = {"mean", "amax", "sum"}
_MOVES = {"view", "_unsafe_view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "flatten"}


def _moved(trace: _Trace, args: tuple[Any, ...], output: Tensor, name: str) -> _Trace:
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
    if not places:
        return replace(trace, axes=None)
    place = places[-1]
    if trace.axes is not None and trace.axes[0] in places:
        place = trace.axes[0]
    return replace(trace, axes=(place, place + 1))


@dataclass(frozen=True)
class MapGrid:
    """Where a map's cells lie, and how many there are.

    Attributes:
        lattice: (y, x) lattices.
        extra_cells: (y, x) cells beyond input size / stride, for inputs that are multiples of the alignment.
    """

    lattice: tuple[Lattice, Lattice]
    extra_cells: tuple[int, int]


@dataclass(frozen=True)
class NetGrid:
    """What a net does to grids, from image to maps.

    Attributes:
        maps: The maps that scores are read from; the last is the net's answer.
        grid: Which pixels the answer's cells see.
        alignment: (y, x) coarsest subsampling.
        minimum: (y, x) smallest input size, a multiple of the alignment.
        global_context: Modules through which a cell depends on the whole image.
        padded: Whether any layer looks beyond its map's edge, so that the border shows in the cells near it.
        channels: K of the answer.
    """

    maps: tuple[MapGrid, ...]
    grid: Grid
    alignment: tuple[int, int]
    minimum: tuple[int, int]
    global_context: tuple[str, ...]
    padded: bool
    channels: int


def trace_grids(net: nn.Module, height: int, width: int, channels: int = 3) -> tuple[GridTracer, Any]:
    """Run a net on a fake image and follow its grids.

    Args:
        net: Any module from (N, C, H, W) float to a tensor or a tuple of tensors; it is not changed.
        height: Pixels.
        width: Pixels.
        channels: C.

    Returns:
        The tracer, and the net's fake output.
    """
    tracer = GridTracer()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        image = torch.empty(1, channels, height, width)
        with tracer.following(net), tracer:
            output = net(tracer.start(image))
    return tracer, output


def derive_net_grid(net: nn.Module, native: tuple[int, int], channels: int = 3) -> NetGrid:
    """Derive the grids of a net's maps, and how their sizes follow from the image's.

    Args:
        net: A module from (N, C, H, W) float to (N, K, h, w), or to a tuple of such maps; in eval mode.
        native: (height, width) at which the net is known to work.
        channels: C.

    Raises:
        ArchitectureError: A map has no constant stride.
    """
    tracer, output = trace_grids(net, *native, channels)
    maps = list(_tensors((output,)))
    grids = [tracer.grid(tensor) for tensor in maps]
    align = tracer.alignment
    for multiple in range(1, _MOST_MULTIPLES):
        minimum = (multiple * align[0], multiple * align[1])
        small = _map_sizes(net, minimum, channels)
        if small is not None:
            break
    else:
        raise ArchitectureError(f"the net takes no input up to {minimum[0]}x{minimum[1]} pixels")
    larger = _map_sizes(net, (minimum[0] + align[0], minimum[1] + align[1]), channels)
    found = []
    for i, grid in enumerate(grids):
        if grid is None or grid.y.stride.denominator != 1 or grid.x.stride.denominator != 1:
            raise ArchitectureError("the net's output is not a map whose cells stand at a constant stride of pixels")
        lattice = lattices(grid)
        (h, w), (y, x) = small[i], (axis.stride for axis in lattice)
        if larger is None or larger[i] != (h + align[0] // y, w + align[1] // x):
            raise ArchitectureError(
                f"the map does not grow by whole cells: {h}x{w} cells at {minimum[0]}x{minimum[1]} pixels,"
                f" {larger and larger[i]} one alignment later"
            )
        found.append(MapGrid(lattice, (h - minimum[0] // y, w - minimum[1] // x)))
    answer = grids[-1] or Grid()
    return NetGrid(tuple(found), answer, align, minimum, tuple(tracer.global_context), tracer.padded, maps[-1].shape[1])


def _map_sizes(net: nn.Module, size: tuple[int, int], channels: int) -> list[tuple[int, int]] | None:
    """(h, w) of the maps for an input size, or None when the net does not take it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it reports the failures that are expected here
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            sizes = [(t.shape[2], t.shape[3]) for t in _tensors((net(torch.empty(1, channels, *size)),))]
    except RuntimeError:  # what PyTorch raises when a kernel is larger than its padded input
        return None
    finally:
        log.setLevel(level)
    return sizes if min(min(s) for s in sizes) > 0 else None

"""Follows grids (stride, offset and receptive field) through a net by running it on shapes alone.

The net runs on fake tensors, which have shapes without storage, and every operator that PyTorch dispatches is followed,
so that no architecture needs a rule of its own.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.swin_transformer import ShiftedWindowAttention

from training.grid import Grid
from training.grid_moves import MOVES, moved
from training.grid_rules import (
    REDUCTIONS,
    RULES,
    Trace,
    both,
    contracts_space,
    kept,
    looks_beyond,
    mixes_space,
    reduced_axes,
)
from training.tracing import blank_image, fake_tensors


class GridTracer(TorchDispatchMode):
    """Follows grids through the operators that run inside `with GridTracer()`.

    Attributes:
        alignment: (y, x) least common multiples of the strides seen.
        global_context: Modules whose output mixes a value pooled over the whole map back into a map.
        padded: Whether any operator reads beyond its map's edge.
        shifts_windows: Whether there is a window attention, whose windows are shifted if a map holds several.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alignment = (1, 1)
        self.global_context: list[str] = []
        self.padded = False
        self.shifts_windows = False
        self._traces: dict[int, Trace | str] = {}  # a module's name instead of a trace: pooled globally there
        self._alive: list[Tensor] = []  # keeps ids unique
        self._module = "the net"
        self._suspended = False

    def start(self, image: Tensor) -> Tensor:
        """Declare an (N, C, H, W) tensor to be the image, whose grid has stride 1 and offset 0."""
        self._keep(image, Trace(Grid(), (image.shape[2], image.shape[3]), (2, 3)))
        return image

    def grid(self, tensor: object) -> Grid | None:
        """The grid of a tensor; None if it has no spatial axes."""
        known = self._traces.get(id(tensor))
        return known.grid if isinstance(known, Trace) and known.axes is not None else None

    def is_map(self, tensor: Tensor) -> bool:
        """Whether a tensor is an (N, C, h, w) map."""
        known = self._traces.get(id(tensor))
        return isinstance(known, Trace) and known.axes == (2, 3)

    @contextmanager
    def following(self, net: nn.Module) -> Iterator[None]:
        """Keep track of which module of `net` is running, and treat each window attention as one step."""
        handles = []
        for name, module in net.named_modules():
            if isinstance(module, ShiftedWindowAttention):
                handles += [
                    module.register_forward_pre_hook(self._enter_attention, prepend=True),
                    module.register_forward_hook(self._leave_attention),
                ]
            elif next(module.children(), None) is None:
                handles.append(module.register_forward_pre_hook(self._enter(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: object) -> None:
            self._module = name

        return hook

    def _enter_attention(self, _module: nn.Module, _args: object) -> None:
        self._suspended = True

    def _leave_attention(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Record that a window attention reads up to window - 1 cells before and after a cell, in whole windows."""
        self._suspended = False
        trace = self._traces[id(args[0])]
        if isinstance(trace, Trace):
            windows: tuple[int, int] = tuple(module.window_size)
            seen = both(trace, [2 * w - 1 for w in windows], 1, [w - 1 for w in windows], 1)
            self._keep(output, replace(trace, grid=seen), windows)
            self.padded = self.shifts_windows = True

    def _note_context(self, *modules: str) -> None:
        self.global_context += [m for m in dict.fromkeys(modules) if m not in self.global_context]

    def _keep(self, tensor: Tensor, trace: "Trace | str", period: tuple[int, int] = (1, 1)) -> None:
        self._traces[id(tensor)] = trace
        self._alive.append(tensor)
        if isinstance(trace, Trace):
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
        inputs = [self._traces[id(t)] for t in tensors_in(args) if id(t) in self._traces]
        if not inputs:
            return output
        name = func.overloadpacket.__name__
        rule = RULES.get(name)
        for tensor in tensors_in((output,)):
            if id(tensor) in self._traces and any(tensor is t for t in tensors_in(args)):
                continue  # changed in place: the same tensor has the same grid
            self._follow(name, rule, inputs, args, tensor)
        return output

    def _follow(self, name: str, rule: Any, inputs: list["Trace | str"], args: tuple[Any, ...], output: Tensor) -> None:
        maps = [t for t in inputs if isinstance(t, Trace)]
        pooled = [t for t in inputs if isinstance(t, str)]
        if not maps:
            self._keep(output, pooled[0])
            return
        trace = maps[0]
        if pooled:
            self._note_context(*pooled)
        contracted = contracts_space(name, args, self._traces)
        if contracted or mixes_space(name, args, trace):
            self._note_context(self._module)
        if contracted:
            keeps_cells = math.prod(trace.size) in output.shape  # as attention's answers do
            self._keep(output, replace(trace, axes=None, cut=None) if keeps_cells else self._module)
        elif name in MOVES:
            self._keep(output, moved(trace, args, output, name))
        elif rule is not None and trace.axes is not None:
            grid = rule(trace, args)
            if grid is None:
                self._keep(output, self._module.rpartition(".")[0] or self._module)
                return
            axes = trace.axes
            if name in REDUCTIONS:
                axes = reduced_axes(axes, args)
            size = (output.shape[axes[0]], output.shape[axes[1]])
            self._keep(output, Trace(grid, size, axes))
            self.padded |= looks_beyond(trace, grid, size)
        else:
            for other in maps[1:]:
                trace = replace(trace, grid=trace.grid.joined(other.grid), axes=trace.axes or other.axes)
            self._keep(output, kept(trace, name, args, output) or self._module)


def trace_grids(net: nn.Module, height: int, width: int, channels: int = 3) -> tuple[GridTracer, Any]:
    """Run a net on a fake image and follow its grids.

    Args:
        net: Any module from (N, C, H, W) float to a tensor or a tuple of tensors; it is not changed.
        height: The image's rows.
        width: The image's columns.
        channels: The image's channels, C.

    Returns:
        The tracer, and the net's fake output.
    """
    tracer = GridTracer()
    with fake_tensors():
        image = blank_image(net, (1, channels, height, width))
        with tracer.following(net), tracer:
            output = net(tracer.start(image))
    return tracer, output


def record_grids(net: fx.GraphModule, input_size: tuple[int, int], channels: int) -> GridTracer:
    """Run a dense net on a fake image and store the grid and shape of every value in its node's meta.

    Args:
        net: A traced dense net; `meta["grid"]` and `meta["dense_shape"]` of its nodes are set.
        input_size: (height, width) of the image.
        channels: The image's channels, C.

    Returns:
        The tracer that followed the run.

    Raises:
        ArchitectureError: Values without a common grid are combined.
    """
    tracer = GridTracer()
    with fake_tensors():
        image = blank_image(net, (1, channels, *input_size))
        with tracer.following(net), tracer:
            _GridRecorder(net, tracer).run(tracer.start(image))
    return tracer


class _GridRecorder(fx.Interpreter):
    def __init__(self, net: fx.GraphModule, tracer: GridTracer) -> None:
        super().__init__(net)
        self._tracer = tracer

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["grid"] = self._tracer.grid(value)
        n.meta["dense_shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        return value


def tensors_in(values: object) -> Iterator[Tensor]:
    """The tensors among values that may be nested in tuples and lists."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)

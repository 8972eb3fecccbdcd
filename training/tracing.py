"""Tracing a classifier into a graph whose nodes are layers, with every shape in it static."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import pad

from fcnseg.errors import ArchitectureError


class LayerTracer(fx.Tracer):
    """Traces down to layers: modules none of whose descendants holds parameters.

    Layers keep their behaviour in training (dropout, stochastic depth, batch statistics), which tracing through them
    in eval mode would fix for ever.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        """Whether a module becomes one node of the graph."""
        return not any(next(child.parameters(), None) is not None for child in m.children())


class PaddedConv2d(nn.Conv2d):
    """A convolution behind a zero padding that differs from side to side, as TensorFlow's SAME rule gives it.

    Attributes:
        sides: (left, right, top, bottom) padding in cells.
    """

    sides: tuple[int, int, int, int]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the base class's name)
        """Pad and convolve (N, C, H, W)."""
        output: Tensor = self._conv_forward(pad(input, self.sides), self.weight, self.bias)
        return output


class PaddedMaxPool2d(nn.MaxPool2d):
    """A max pooling behind a padding that differs from side to side and never wins.

    Attributes:
        sides: (left, right, top, bottom) padding in cells.
    """

    sides: tuple[int, int, int, int]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the base class's name)
        """Pad and pool (N, C, H, W)."""
        output: Tensor = super().forward(pad(input, self.sides, value=float("-inf")))
        return output


def trace_layers(model: nn.Module) -> fx.GraphModule:
    """Trace a classifier in eval mode into a graph of layers that shares its modules.

    Raises:
        ArchitectureError: torch.fx cannot trace it.
    """
    try:
        graph = LayerTracer().trace(model)
    except Exception as error:  # whatever a foreign forward raises on proxies
        reason = " ".join(str(error).split())[:200]
        raise ArchitectureError(
            f"{type(model).__name__} cannot be traced by torch.fx ({reason}); its forward must not branch on values"
        ) from error
    return fx.GraphModule(model, graph, class_name=type(model).__name__)


def fix_same_padding(model: nn.Module, input_size: tuple[int, int]) -> None:
    """Make padding that a net computes from its input's size static, at its value for `input_size`, in place.

    timm's `tf_*` nets pad as TensorFlow's SAME rule says: by an amount that depends on the size, so that a dense net's
    grid would move with the image. Layers are known by timm's class names.
    """
    layers = {name: m for name, m in model.named_modules() if type(m).__name__ in {"Conv2dSame", "MaxPool2dSame"}}
    if not layers:
        return
    sizes = _input_sizes(model, layers, input_size)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _static(layer, sizes[name]))


def _input_sizes(
    model: nn.Module, layers: dict[str, nn.Module], input_size: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    sizes: dict[str, tuple[int, int]] = {}

    def remember(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            sizes[name] = (args[0].shape[-2], args[0].shape[-1])

        return hook

    handles = [layer.register_forward_pre_hook(remember(name)) for name, layer in layers.items()]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model(torch.empty(1, 3, *input_size))
    for handle in handles:
        handle.remove()
    return sizes


def _static(layer: nn.Module, size: tuple[int, int]) -> nn.Module:
    kernel, stride, dilation = (_pair(getattr(layer, key)) for key in ("kernel_size", "stride", "dilation"))
    sides: list[int] = []
    for axis in (1, 0):  # left and right first, as pad wants them
        cells = -(-size[axis] // stride[axis])
        total = max(0, (cells - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1 - size[axis])
        sides += [total // 2, total - total // 2]
    if isinstance(layer, nn.Conv2d):
        conv = PaddedConv2d(
            layer.in_channels, layer.out_channels, kernel, stride, dilation=dilation, groups=layer.groups,
            bias=layer.bias is not None, device="meta",
        )  # fmt: skip
        conv.weight, conv.bias = layer.weight, layer.bias
        conv.sides = (sides[0], sides[1], sides[2], sides[3])
        return conv.train(layer.training)
    pool = PaddedMaxPool2d(kernel, stride, dilation=dilation)
    pool.sides = (sides[0], sides[1], sides[2], sides[3])
    return pool


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, (tuple, list)) else (value, value)

"""Make static the padding that timm's layers compute from the size of their input by TensorFlow's SAME rule."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from training.grid_rules import pair
from training.tracing import blank_image, fake_tensors, input_channels

_SAME = {"AvgPool2dSame", "Conv2dSame", "MaxPool2dSame", "ScaledStdConv2dSame", "StdConv2dSame"}


class PaddedConv2d(nn.Conv2d):
    """A convolution with zero padding that may differ on each side, as TensorFlow's SAME rule requires.

    Attributes:
        sides: (left, right, top, bottom) padding in cells.
    """

    sides: tuple[int, int, int, int]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the base class's name)
        """Pad and convolve (N, C, H, W)."""
        output: Tensor = self._conv_forward(pad(input, self.sides), self.weight, self.bias)
        return output


class PaddedMaxPool2d(nn.MaxPool2d):
    """A max pooling with padding that may differ on each side and never is the maximum.

    Attributes:
        sides: (left, right, top, bottom) padding in cells.
    """

    sides: tuple[int, int, int, int]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the base class's name)
        """Pad and pool (N, C, H, W)."""
        output: Tensor = super().forward(pad(input, self.sides, value=float("-inf")))
        return output


class PaddedAvgPool2d(nn.AvgPool2d):
    """An average pooling with zero padding that may differ on each side.

    Attributes:
        sides: (left, right, top, bottom) padding in cells.
    """

    sides: tuple[int, int, int, int]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the base class's name)
        """Pad and pool (N, C, H, W)."""
        output: Tensor = super().forward(pad(input, self.sides))
        return output


def fix_same_padding(model: nn.Module, input_size: tuple[int, int]) -> None:
    """Replace padding that a net computes from its input's size by its value for `input_size`, in place.

    timm's `tf_*` nets and DeepMind's NFNets pad by TensorFlow's SAME rule: the amount depends on the input's size, so a
    dense net's grid would move with the image's size. Layers are recognised by timm's class names.
    """
    layers = {name: layer for name, layer in model.named_modules() if _computes_padding(layer)}
    if not layers:
        return
    sizes = _input_sizes(model, layers, input_size)
    for name, layer in layers.items():
        model.set_submodule(name, _static(layer, sizes[name]))


def _computes_padding(layer: nn.Module) -> bool:
    return type(layer).__name__ in _SAME and bool(getattr(layer, "same_pad", True))


def _input_sizes(
    model: nn.Module, layers: dict[str, nn.Module], input_size: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    sizes: dict[str, tuple[int, int]] = {}
    channels = input_channels(model, input_size)

    def remember(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            sizes[name] = (args[0].shape[-2], args[0].shape[-1])

        return hook

    handles = [layer.register_forward_pre_hook(remember(name)) for name, layer in layers.items()]
    with fake_tensors():
        model(blank_image(model, (1, channels, *input_size)))
    for handle in handles:
        handle.remove()
    return sizes


def _static(layer: Any, size: tuple[int, int]) -> nn.Module:
    kernel, stride, dilation = (pair(getattr(layer, key, 1)) for key in ("kernel_size", "stride", "dilation"))
    sides: list[int] = []
    for axis in (1, 0):  # left and right first: the order of `pad`
        cells = -(-size[axis] // stride[axis])
        total = max(0, (cells - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1 - size[axis])
        sides += [total // 2, total - total // 2]
    left, right, top, bottom = sides
    found: PaddedConv2d | PaddedMaxPool2d | PaddedAvgPool2d
    if hasattr(layer, "same_pad"):  # a layer that standardises its weights at each call
        layer.same_pad = False
        return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), layer)
    if isinstance(layer, nn.Conv2d):
        found = PaddedConv2d(
            layer.in_channels, layer.out_channels, kernel, stride, dilation=dilation, groups=layer.groups,
            bias=layer.bias is not None, device="meta",
        )  # fmt: skip
        found.weight, found.bias = layer.weight, layer.bias
    elif isinstance(layer, nn.AvgPool2d):
        found = PaddedAvgPool2d(kernel, stride, ceil_mode=layer.ceil_mode, count_include_pad=layer.count_include_pad)
    else:
        found = PaddedMaxPool2d(kernel, stride, dilation=dilation)
    found.sides = (left, right, top, bottom)
    return found.train(layer.training)

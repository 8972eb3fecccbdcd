"""Rewrites convolutions for the tensor cores of a GPU; the sums are the same, in another order.

A fully connected layer that became a convolution has a 7x7 kernel and thousands of input and output channels. cuDNN's
heuristic has no tensor-core kernel for it, and then onnxruntime cannot run the model. As one matrix product (im2col) it
suits such a GPU best: the neighbourhood of each position becomes a row, as when the layer was fully connected.

Tensor cores read channels in groups of eight. For the three channels of an image cuDNN does not use them, so channels
of zeros are appended.

With products that fast, memory traffic matters. A ReLU after a max pooling reads a quarter of what it reads before the
pooling, with the same result, since ReLU is monotonic and commutes with the maximum.
"""

from torch import Tensor, cat, fx, nn
from torch.nn.functional import pad

from training.same_padding import PaddedConv2d

_LANES = 8
"""Channels of 16-bit floats that tensor cores read at once (NVIDIA, Deep Learning Performance, Tensor Core Shapes)."""
_LARGE_KERNEL = 6
"""Least kernel side of a convolution to become a matrix product: AlexNet's FC layers have 6, VGG's have 7."""


def fit_tensor_cores(net: nn.Module) -> None:
    """Replace a net's convolutions by equivalent ones that suit tensor cores better, where there are such."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Conv2d) or child.groups > 1 or type(child) not in {nn.Conv2d, PaddedConv2d}:
                continue
            if _is_large(child):
                setattr(parent, name, UnfoldedConv2d(child))
            elif child.in_channels < _LANES:
                setattr(parent, name, FilledConv2d(child))

    for part in net.modules():
        if isinstance(part, fx.GraphModule):
            _pool_before_relu(part)


def _pool_before_relu(traced: fx.GraphModule) -> None:
    for node in traced.graph.nodes:
        following = next(iter(node.users), None)
        if following is None or not (_is(traced, node, nn.ReLU) and _is(traced, following, nn.MaxPool2d)):
            continue
        # A value that other nodes read before the ReLU may be changed in place by it, so such a ReLU stays where it is.
        alone = len(node.users) == len(node.all_input_nodes[0].users) == 1
        if alone and not traced.get_submodule(str(following.target)).return_indices:
            node.target, following.target = following.target, node.target
    traced.recompile()


def _is(traced: fx.GraphModule, node: fx.Node, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), kind)


def _is_large(conv: nn.Conv2d) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.in_channels >= _LANES
        and min(conv.kernel_size) >= _LARGE_KERNEL
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


class UnfoldedConv2d(nn.Module):
    """A convolution of stride 1 as one matrix product (im2col).

    Args:
        conv: The convolution that gives weights and padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        y, x = (int(cells) for cells in conv.padding)
        self.sides = (x, x, y, y)
        self.kernel_size = conv.kernel_size
        by_place = conv.weight.detach().permute(2, 3, 1, 0)  # (p, q, C, K)
        self.weight = nn.Parameter(by_place.reshape(-1, conv.out_channels).contiguous())
        self.bias = conv.bias

    def forward(self, features: Tensor) -> Tensor:
        """Convolve (N, C, H, W) to (N, K, H', W')."""
        if any(self.sides):
            features = pad(features, self.sides)
        (p, q), cells = self.kernel_size, features.permute(0, 2, 3, 1)
        height, width = cells.shape[1] - p + 1, cells.shape[2] - q + 1
        rows = cat([cells[:, :, right : right + width] for right in range(q)], 3)
        neighbourhoods = cat([rows[:, down : down + height] for down in range(p)], 3)  # (N, H', W', p * q * C)
        sums = neighbourhoods @ self.weight
        return (sums if self.bias is None else sums + self.bias).permute(0, 3, 1, 2)


class FilledConv2d(PaddedConv2d):
    """A convolution that appends channels of zeros to its input, up to the number that tensor cores read at once.

    Args:
        conv: The convolution that gives weights and padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            _LANES,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            (conv.stride[0], conv.stride[1]),
            conv.padding if isinstance(conv.padding, str) else (conv.padding[0], conv.padding[1]),
            (conv.dilation[0], conv.dilation[1]),
            padding_mode=conv.padding_mode,
        )
        self._missing = _LANES - conv.in_channels
        self.weight = nn.Parameter(pad(conv.weight.detach(), (0, 0, 0, 0, 0, self._missing)))
        self.bias = conv.bias
        self.sides = conv.sides if isinstance(conv, PaddedConv2d) else (0, 0, 0, 0)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the base class's name)
        """Pad and convolve (N, C, H, W), C being the original convolution's."""
        filled = pad(input, (*self.sides, 0, self._missing))
        output: Tensor = self._conv_forward(filled, self.weight, self.bias)
        return output

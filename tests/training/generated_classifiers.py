"""Small classifiers that a strategy draws: depth, kernels, strides, paddings, pools, branches and tails."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training.small_nets import CLASSES, hidden_tail

Pair = tuple[int, int]
CHANNELS = 6

# What stands between the feature map and the first Linear layer, as forwards say it.
FLATTENS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "method": lambda x: x.flatten(1),
    "function": lambda x: torch.flatten(x, 1),
}
GLOBAL_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean([2, 3]),
    "mean of the last axes": lambda x: x.mean((-2, -1)),
    "mean that keeps its axes": lambda x: x.mean((2, 3), keepdim=True).flatten(1),
    "adaptive": lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 1), 1),
    "adaptive, squeezed": lambda x: F.adaptive_avg_pool2d(x, (1, 1)).squeeze(-1).squeeze(-1),
    "a window of the map's size": lambda x: F.avg_pool2d(x, x.shape[2:]).flatten(1),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class Layer:
    """A layer of the features; `sum` and `cat` join a convolution with a cropped 1x1 shortcut."""

    kind: str  # conv, grouped, depthwise, sum, cat, max or avg
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil: bool
    norm: bool

    def cells(self, size: int, axis: int) -> int:
        """Cells of the layer's output along an axis, as PyTorch documents them."""
        kernel, stride, padding, dilation = (v[axis] for v in (self.kernel, self.stride, self.padding, self.dilation))
        room = size + 2 * padding - dilation * (kernel - 1) - 1
        if not self.ceil:
            return room // stride + 1
        cells = -(-room // stride) + 1
        return cells - 1 if (cells - 1) * stride >= size + padding else cells


class Joined(nn.Module):
    """A convolution and a 1x1 shortcut over the same middle of the map, added or concatenated."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.concatenates = layer.kind == "cat"
        channels = CHANNELS // 2 if self.concatenates else CHANNELS
        self.conv = nn.Conv2d(CHANNELS, channels, layer.kernel, layer.stride, layer.padding, layer.dilation)
        self.shortcut = nn.Conv2d(CHANNELS, channels, 1, layer.stride)
        lost = [d * (k - 1) - 2 * p for k, p, d in zip(layer.kernel, layer.padding, layer.dilation, strict=True)]
        self.rows, self.columns = (slice(n // 2, -(n - n // 2) or None) for n in lost)

    def forward(self, x: Tensor) -> Tensor:
        short = self.shortcut(x[:, :, self.rows, self.columns])
        return torch.cat([self.conv(x), short], 1) if self.concatenates else self.conv(x) + short


@dataclass(frozen=True)
class Spec:
    """A classifier, as the strategy draws it.

    Attributes:
        layers: Of the features; the first is a convolution of the image.
        activation: Behind every convolution.
        tail: `flatten`, `grid` (adaptive pooling, then flatten), `global` (pooling) or `conv` (1x1, then pooling).
        pool: How the tail flattens or pools.
        grid: (p, q) of the tail's adaptive pooling, or of the map that it flattens.
        head: Behind the pooling: `linear`, `hidden` (three Linear layers), `layer norm` or `batch norm` and Linear.
        native: Native (height, width).
    """

    layers: tuple[Layer, ...]
    activation: str
    tail: str
    pool: str
    grid: Pair
    head: str
    native: Pair


class Generated(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        modules: list[nn.Module] = []
        for index, layer in enumerate(spec.layers):
            modules += built(layer, CHANNELS if index else 3, ACTIVATIONS[spec.activation])
        self.features = nn.Sequential(*modules)
        if spec.tail == "conv":
            head: nn.Module = nn.Sequential(nn.Dropout(), nn.Conv2d(CHANNELS, CLASSES, 1), nn.ReLU())
        else:
            inputs = CHANNELS * spec.grid[0] * spec.grid[1]
            head = {
                "linear": lambda: nn.Linear(inputs, CLASSES),
                "hidden": lambda: hidden_tail(inputs),
                "layer norm": lambda: nn.Sequential(nn.LayerNorm(inputs), nn.Dropout(), nn.Linear(inputs, CLASSES)),
                "batch norm": lambda: nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, CLASSES)),
            }[spec.head]()
        self.pool = nn.AdaptiveAvgPool2d(spec.grid)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.spec.tail == "conv":
            return GLOBAL_POOLS[self.spec.pool](self.head(x))
        if self.spec.tail == "global":
            return self.head(GLOBAL_POOLS[self.spec.pool](x))
        if self.spec.tail == "grid":
            x = self.pool(x)
        return self.head(FLATTENS[self.spec.pool](x))


def built(layer: Layer, channels: int, activation: Callable[[], nn.Module]) -> list[nn.Module]:
    window = (layer.kernel, layer.stride, layer.padding)
    if layer.kind == "max":
        return [nn.MaxPool2d(*window, layer.dilation, ceil_mode=layer.ceil)]
    if layer.kind == "avg":
        return [nn.AvgPool2d(*window, ceil_mode=layer.ceil)]
    if layer.kind in {"sum", "cat"}:
        joined: nn.Module = Joined(layer)
    else:
        groups = {"conv": 1, "grouped": 2, "depthwise": channels}[layer.kind]
        joined = nn.Conv2d(channels, CHANNELS, *window, layer.dilation, groups)
    return [joined, *([nn.BatchNorm2d(CHANNELS)] if layer.norm else []), activation()]


def chain_cells(chain: tuple[Layer, ...], size: int, axis: int) -> int:
    """Cells of the last map along an axis; 0 where some layer's window is larger than its map."""
    for layer in chain:
        size = max(0, layer.cells(size, axis)) if size else 0
    return size


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def layers(draw: st.DrawFn, *, first: bool, padded: bool) -> Layer:
    joins_or_pools = [] if first else ["grouped", "depthwise", "sum", "cat", "max", "avg"]
    kind = draw(st.sampled_from(["conv", *joins_or_pools]))
    kernel, stride = draw(pairs(1, 5)), draw(pairs(1, 2))
    dilation = (1, 1) if kind == "avg" else draw(pairs(1, 2))
    # Pooling pads by half its kernel at most, and a shortcut is cropped, never padded.
    most = [k // 2 if kind in {"max", "avg"} else d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    padding = (draw(st.integers(0, most[0])), draw(st.integers(0, most[1]))) if padded else (0, 0)
    ceil = padded and kind in {"max", "avg"} and draw(st.booleans())
    return Layer(kind, kernel, stride, padding, dilation, ceil, norm=draw(st.booleans()))


@st.composite
def specs(draw: st.DrawFn, *, padded: bool = True) -> Spec:
    """Classifiers of one to four layers; a net that is not `padded` never looks beyond its map's edge."""
    depth = draw(st.integers(1, 4))
    chain = tuple(draw(layers(first=i == 0, padded=padded)) for i in range(depth))
    tail = draw(st.sampled_from(["flatten", "grid", "global", "conv"]))
    pool = draw(st.sampled_from(list(FLATTENS if tail in {"flatten", "grid"} else GLOBAL_POOLS)))
    grid = draw(pairs(1, 3)) if tail in {"flatten", "grid"} else (1, 1)
    cells_each = (1, 1) if tail == "flatten" else draw(pairs(1, 3))
    norms = ["layer norm", "batch norm"] if grid == (1, 1) else []  # of channels, not of a flattened grid
    head = draw(st.sampled_from(["linear", "hidden", *norms]))
    native = []
    for axis in (0, 1):
        # The pooled grid divides the map, which a window of one size asks for.
        fitting = [n for n in range(1, 200) if chain_cells(chain, n, axis) == grid[axis] * cells_each[axis]]
        assume(fitting)  # padding may give a map more cells than that at any size
        native.append(draw(st.sampled_from(fitting)))
    return Spec(chain, draw(st.sampled_from(list(ACTIVATIONS))), tail, pool, grid, head, (native[0], native[1]))

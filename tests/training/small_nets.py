"""Small classifiers, one per tail shape, with seeded weights and shuffled BatchNorm statistics."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 7


def conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Pooled(nn.Module):
    """Padded features of stride 8, adaptive average pooling, flatten, and a tail."""

    def __init__(self, tail: nn.Module, grid: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8, stride=2), conv(8, 12, stride=2), conv(12, 16, stride=2))
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.flatten(self.pool(self.features(x)), 1))


class Residual(nn.Module):
    """A residual block at stride 2, functional activations, and the mean over the spatial axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2, 3)
        self.conv1, self.conv2 = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.shortcut = nn.Conv2d(8, 16, 1, 2)
        self.down = nn.Conv2d(16, 24, 3, 2, 1)
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1))
        x = F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))
        x = F.relu(self.down(x))
        return self.fc(F.dropout(x.mean([2, 3]), training=self.training))


class LeNet(nn.Module):
    """Unpadded convolutions, and no pooling before the flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 10, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.fc = nn.Sequential(nn.Linear(10 * 5 * 6, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.fc(x.view(x.size(0), -1))


class Squeezed(nn.Module):
    """The last layer is a convolution; no Linear at all."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8, stride=2), nn.MaxPool2d(3, 2, ceil_mode=True), conv(8, 16))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(16, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class SqueezeExcited(nn.Module):
    """Global context inside, and a non-affine tail behind the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv(3, 8, stride=2), conv(8, 8, stride=2)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.excite = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.tail = nn.Sequential(nn.Linear(8, 16), nn.Hardswish(), nn.Dropout(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        x = x * self.excite(self.squeeze(x))
        return self.tail(torch.flatten(self.pool(x), 1))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a net whose weights, BatchNorm statistics included, follow from the seed, in eval mode."""
    torch.manual_seed(seed)
    net = make()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.elementwise_affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            if getattr(module, "bias", None) is not None:
                nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.5)
    return net.eval()


def hidden_tail(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, CLASSES)
    )


TAILS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "global pooling, one Linear": (lambda: Pooled(nn.Linear(16, CLASSES)), (64, 64)),
    "global pooling, LayerNorm": (
        lambda: Pooled(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, CLASSES))),
        (64, 48),
    ),
    "global pooling, BatchNorm1d": (
        lambda: Pooled(nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, CLASSES))),
        (64, 64),
    ),
    "global pooling, hidden layers": (lambda: Pooled(hidden_tail(16)), (64, 64)),
    "a grid of cells, hidden layers": (lambda: Pooled(hidden_tail(16 * 16), grid=4), (32, 32)),
    "a grid of cells, each pooled from several": (lambda: Pooled(hidden_tail(16 * 16), grid=4), (64, 64)),
    "mean over the spatial axes": (Residual, (64, 64)),
    "no pooling": (LeNet, (32, 36)),
    "no Linear": (Squeezed, (64, 64)),
    "squeeze and excitation": (SqueezeExcited, (64, 64)),
}

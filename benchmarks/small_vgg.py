"""VGG-like nets small enough to be pretrained on one core in minutes, for fc_transfer.py.

Five stages of 3x3 convolutions, each ending in a pooling, bring 64x64 pixels to a 2x2 grid of stride 32. On it stand
two fully connected layers of 256 with dropout, as VGG-16 has two of 4096 on 7x7; or, to compare, nothing but a mean. A
name says how the stages pool and what the tail is: `max_fc`, `avg_fc`, `max_gap`, `avg_gap`, such as
`fcnseg inspect benchmarks/small_vgg.py:max_fc --input-size 64`.
"""

from torch import Tensor, nn

NATIVE = (64, 64)
NUM_CLASSES = 8
_WIDTHS = ((16,), (32,), (64, 64), (96,), (128,))
_HIDDEN = 256


class SmallVgg(nn.Module):
    """Maps (N, 3, 64, 64) to (N, 8) logits.

    Args:
        pooling: The layer that ends each stage.
        fc: Whether fully connected layers stand before the last one.
    """

    def __init__(self, pooling: type[nn.Module], *, fc: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for widths in _WIDTHS:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(pooling(kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.Identity() if fc else nn.AdaptiveAvgPool2d(1)
        cells = (NATIVE[0] // 32) * (NATIVE[1] // 32)
        self.classifier = nn.Sequential(
            *(_fully_connected(channels * cells) if fc else [nn.Linear(channels, NUM_CLASSES)])
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.features(image)).flatten(1))
        return logits


def _fully_connected(inputs: int) -> list[nn.Module]:
    return [
        nn.Linear(inputs, _HIDDEN),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(_HIDDEN, NUM_CLASSES),
    ]


def max_fc() -> nn.Module:
    return SmallVgg(nn.MaxPool2d, fc=True)


def avg_fc() -> nn.Module:
    return SmallVgg(nn.AvgPool2d, fc=True)


def max_gap() -> nn.Module:
    return SmallVgg(nn.MaxPool2d, fc=False)


def avg_gap() -> nn.Module:
    return SmallVgg(nn.AvgPool2d, fc=False)

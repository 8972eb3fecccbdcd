"""The backbone of the golden model: a VGG in miniature, down to stride 32."""

from itertools import pairwise

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Five stages of a convolution, batch normalisation and pooling, then the mean and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 12, 16, 24, 32)
        self.features = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))
                for i, o in pairwise(widths)
            )
        )
        self.fc = nn.Linear(widths[-1], 8)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 8) scores."""
        return self.fc(self.features(x).mean((2, 3)))

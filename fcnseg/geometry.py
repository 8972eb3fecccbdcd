"""How an image of any size is padded for a net, and how the net's map is resampled to the image's pixels.

Cell i of a map is centred at pixel `offset + stride * i`, where pixel centres are at 0, 1, 2, ... The rule depends only
on the image, never on its batch:

1. The image is edge-padded by `lead` pixels before its first row and column, the smallest multiple of the alignment
   that brings the first cell's centre to within one stride of pixel 0. (VGG-16's fc6 is an unpadded 7x7 convolution
   whose first cell would be centred at pixel 111.5: its lead is 96.)
2. It is edge-padded after its last row and column to a multiple of `alignment`, at least `minimum`, and so far that the
   last cell's centre lies within one stride of the last pixel.
3. Scores are resampled from the grid of cells to that of pixels by the constant stride and offset, and cropped.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class AxisGeometry:
    """The geometry along one axis, in pixels.

    Attributes:
        stride: Pixels from one heatmap cell to the next.
        offset: Centre of cell 0 in the padded image.
        field: Receptive field: the number of pixels that a cell depends on, including the decoder.
        alignment: The net's coarsest stride; padded sizes are multiples of it.
        minimum: The smallest padded size that the net takes, a multiple of `alignment`.
        lead: Edge padding before the first pixel, a multiple of `alignment`.
        trail: The least edge padding after the last pixel.
        extra_cells: Number of cells minus padded size / stride; negative for nets with unpadded convolutions.
        margin: How many pixels away from a pixel its class may depend on the image.
    """

    stride: Positive
    offset: float
    field: Positive
    alignment: Positive
    minimum: Positive
    lead: NotNegative
    trail: NotNegative
    extra_cells: int
    margin: NotNegative

    def __post_init__(self) -> None:
        if self.alignment < 1 or self.minimum % self.alignment or self.lead % self.alignment:
            raise ValueError(
                f"minimum {self.minimum} and lead {self.lead} must be multiples of the alignment {self.alignment}"
            )

    def padded(self, size: int) -> int:
        """Size of the padded axis that the net sees for an image of `size` pixels."""
        multiples = -(-(size + self.lead + self.trail) // self.alignment)
        return max(self.minimum, multiples * self.alignment)

    def canonical(self, size: int) -> int:
        """The largest image size with the same padded size: images padded to it can share a batch."""
        return self.padded(size) - self.lead - self.trail

    def cells(self, size: int) -> int:
        """Number of heatmap cells for an image of `size` pixels."""
        return self.padded(size) // self.stride + self.extra_cells

    def centre(self, cell: int) -> float:
        """Pixel coordinate, in the image, of the centre of a heatmap cell."""
        return self.offset - self.lead + self.stride * cell


@dataclass(frozen=True)
class Geometry:
    """The geometry of both axes."""

    y: AxisGeometry
    x: AxisGeometry

    def canonical(self, height: int, width: int) -> tuple[int, int]:
        """The largest (height, width) with the same padded size as this one."""
        return self.y.canonical(height), self.x.canonical(width)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the padded image that the net sees."""
        return self.y.padded(height), self.x.padded(width)

    def cells(self, height: int, width: int) -> int:
        """Number of heatmap cells for an image of that size."""
        return self.y.cells(height) * self.x.cells(width)

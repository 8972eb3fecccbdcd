"""Images that are read window by window, and the results for a window."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fcnseg.images import require_pixels
from fcnseg.types import ClassMap


class Windowed(Protocol):
    """An image that is read window by window."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Columns."""

    def read(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """Return the pixels of a window; both slices must have start and stop inside the image.

        Returns:
            (rows, columns, 3) uint8 RGB.

        Raises:
            ImageError: The pixels cannot be read.
        """


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """Pixels in memory as a `Windowed` image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.

    Raises:
        ImageError: The array has another shape or dtype.
    """

    pixels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        require_pixels(self.pixels)

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])

    def read(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """Return the pixels of a window as a view."""
        return self.pixels[rows, columns]


@dataclass(frozen=True, eq=False)
class SegmentedWindow:
    """The result for a window of an image. The windows of an image cover each pixel and each cell once.

    Attributes:
        rows: The window's rows of pixels.
        columns: The window's columns of pixels.
        class_map: (rows, columns) class ids, uint8 or uint16.
        confidence: (rows, columns) uint8, as in `Segmentation`; None unless asked for.
        cell_rows: The window's rows of the image's heatmap cells; there may be none.
        cell_columns: The window's columns of heatmap cells.
        heatmap: (K, cell_rows, cell_columns) float32 scores.
    """

    rows: slice
    columns: slice
    class_map: ClassMap
    confidence: NDArray[np.uint8] | None
    cell_rows: slice
    cell_columns: slice
    heatmap: NDArray[np.float32]

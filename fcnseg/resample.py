"""From the cells of a heatmap to the pixels of its image, by stride and offset."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_BAND_PIXELS = 1 << 16  # what is computed at a time stays in the processor's caches


class Axis(Protocol):
    """Where the cells of a heatmap lie along one axis of an image, such as `AxisGeometry`."""

    @property
    def stride(self) -> int:
        """Pixels from one cell to the next."""

    def centre(self, cell: int) -> float:
        """Pixel coordinate of the centre of a cell."""


class Grid(Protocol):
    """Where the cells of a heatmap lie on an image, such as `Geometry`."""

    @property
    def y(self) -> Axis:
        """Down the rows."""

    @property
    def x(self) -> Axis:
        """Along the columns."""


def resample_to_pixels(scores: NDArray[np.float32], grid: Grid, height: int, width: int) -> NDArray[np.float32]:
    """Bring scores from the cells' grid to the pixels': bilinear by stride and offset, whatever the image's size.

    The score at a pixel is interpolated between the cells around it, cell i being centred at `centre(i)`; a pixel
    outside the outermost centres takes the nearest cell's. (cv2.remap would round the weights to 1/32.)

    Args:
        scores: (h, w) float.
        grid: The model's geometry, or a server's `HeatmapGrid`.
        height: Rows wanted: the image's.
        width: Columns wanted: the image's.

    Returns:
        (height, width) float32.
    """
    return resample_window(scores, grid, slice(0, height), slice(0, width))


def resample_window(scores: NDArray[np.float32], grid: Grid, rows: slice, columns: slice) -> NDArray[np.float32]:
    """Compute a window of what `resample_to_pixels` returns, with the same bits.

    Args:
        scores: (h, w) float: all cells.
        grid: Where they lie.
        rows: Pixel rows wanted, both ends given.
        columns: Pixel columns wanted, both ends given.

    Returns:
        (rows, columns) float32.
    """
    above, below, down = _neighbours(grid.y, scores.shape[0], rows)
    before, after, right = _neighbours(grid.x, scores.shape[1], columns)
    values = np.empty((above.size, before.size), np.result_type(scores, np.float32))
    if values.size == 0:
        return values
    first = before[0]
    near = scores[:, first : after[-1] + 1]
    before, after = before - first, after - first
    height = max(1, _BAND_PIXELS // before.size)
    for start in range(0, above.size, height):
        band = slice(start, start + height)
        lines = near[above[band]] + (near[below[band]] - near[above[band]]) * down[band, None]  # (rows, near cells)
        at_before = lines[:, before]
        np.add(at_before, (lines[:, after] - at_before) * right, out=values[band])
    return values


def span(axis: Axis, cells: int, size: int, first: int, last: int) -> slice:
    """Return the pixels from the centre of one cell to that of another, and to the edge where it is the outermost.

    Args:
        axis: Where the cells lie.
        cells: Number of cells.
        size: Number of pixels.
        first: The first cell.
        last: The last cell.

    Returns:
        A slice within the pixels, empty where all these cells are centred beyond them.
    """
    start = 0 if first == 0 else int(np.floor(axis.centre(first)))
    stop = size if last == cells - 1 else int(np.ceil(axis.centre(last))) + 1
    return slice(min(max(start, 0), size), min(max(stop, 0), size))


def _neighbours(
    axis: Axis, cells: int, pixels: slice
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of the pixels: the cells before and behind it, and how far it is from one to the other (0 to 1)."""
    position = np.clip((np.arange(pixels.start, pixels.stop) - axis.centre(0)) / axis.stride, 0, cells - 1)
    before = np.floor(position).astype(np.intp)
    return before, np.minimum(before + 1, cells - 1), (position - before).astype(np.float32)

"""Resample a heatmap from its cells to the pixels of its image, by stride and offset."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_BAND_PIXELS = 1 << 16  # pixels computed at a time, few enough to stay in the processor's caches


class Axis(Protocol):
    """Where the cells of a heatmap lie along one axis of an image, such as `AxisGeometry`."""

    @property
    def stride(self) -> int:
        """Pixels from one cell to the next."""

    def centre(self, cell: int) -> float:
        """Return the pixel coordinate of a cell's centre."""


class Grid(Protocol):
    """Where the cells of a heatmap lie on an image, such as `Geometry`."""

    @property
    def y(self) -> Axis:
        """The vertical axis, along which rows are counted."""

    @property
    def x(self) -> Axis:
        """The horizontal axis, along which columns are counted."""


def resample_to_pixels(scores: NDArray[np.float32], grid: Grid, height: int, width: int) -> NDArray[np.float32]:
    """Interpolate scores from the grid of cells to pixels, bilinearly by stride and offset, for any image size.

    The score at a pixel is interpolated between the cells around it, cell i being centred at `centre(i)`; a pixel
    outside the outermost centres takes the nearest cell's score. (cv2.remap would round the weights to 1/32.)

    Args:
        scores: (h, w) float.
        grid: The model's geometry, or a server's `HeatmapGrid`.
        height: The image's rows.
        width: The image's columns.

    Returns:
        (height, width) float32.
    """
    return resample_window(scores, grid, slice(0, height), slice(0, width))


def resample_window(scores: NDArray[np.float32], grid: Grid, rows: slice, columns: slice) -> NDArray[np.float32]:
    """Compute a window of the result of `resample_to_pixels`, bit for bit.

    Args:
        scores: (h, w) float: all cells.
        grid: Where the cells lie.
        rows: The window's pixel rows, a slice with start and stop.
        columns: The window's pixel columns, a slice with start and stop.

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
    """Return the pixels from the centre of one cell to that of another; an outermost cell extends to the image's edge.

    Args:
        axis: Where the cells lie.
        cells: Number of cells.
        size: Number of pixels.
        first: The first cell.
        last: The last cell.

    Returns:
        A slice within the pixels, empty if the centres of all these cells lie outside the image.
    """
    start = 0 if first == 0 else int(np.floor(axis.centre(first)))
    stop = size if last == cells - 1 else int(np.ceil(axis.centre(last))) + 1
    return slice(min(max(start, 0), size), min(max(stop, 0), size))


def _neighbours(
    axis: Axis, cells: int, pixels: slice
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return, for each pixel, the cells before and after it, and its fraction of the way between them (0 to 1)."""
    position = np.clip((np.arange(pixels.start, pixels.stop) - axis.centre(0)) / axis.stride, 0, cells - 1)
    before = np.floor(position).astype(np.intp)
    return before, np.minimum(before + 1, cells - 1), (position - before).astype(np.float32)

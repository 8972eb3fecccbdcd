"""Blends the scores of overlapping tiles, for nets whose result for a tile depends on the whole tile.

Two tiles with different contexts differ in their scores where they meet, and a hard cut between them would show as a
straight line in the mask. So over the cells that two tiles share, the scores of the heatmap change linearly from one
tile to the next, down the rows and along the columns; then they are resampled to pixels as for any image. Cells are
blended, not pixels, because they are fewer, and because for more than 64 classes there are no scores of pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcnseg.geometry import AxisGeometry
from fcnseg.resample import resample_window
from fcnseg.tiling import Span, Tiling
from fcnseg.types import ClassMap
from fcnseg.windows import SegmentedWindow

_BAND_BYTES = 2**26  # of the scores that are interpolated to pixels at a time


class Blender:
    """Takes the scores of an image's tiles, row by row, and returns windows of the blended result.

    Args:
        tiling: The tiles.
        confidence: Whether to compute confidences.
    """

    def __init__(self, tiling: Tiling, *, confidence: bool) -> None:
        self._tiling = tiling
        self._with_confidence = confidence
        self._below = {columns.core.start: _Seam(1) for columns in tiling.columns}
        self._beside = _Seam(2)

    def blend(self, rows: Span, columns: Span, scores: NDArray[np.float32]) -> SegmentedWindow:
        """Blend a tile with those before it.

        Args:
            rows: The tile's rows.
            columns: The tile's columns.
            scores: (K, h, w) of its valid cells.

        Returns:
            The window from the tile's first overlaps to its last ones, whose scores are now final.
        """
        following = _following(self._tiling.rows, rows), _following(self._tiling.columns, columns)
        scores = self._beside.join(scores, columns.valid, following[1])
        scores = self._below[columns.core.start].join(scores, rows.valid, following[0])
        geometry = self._tiling.info.geometry
        y = _Window.between(geometry.y, rows.valid.start, following[0], self._tiling.height, scores.shape[1])
        x = _Window.between(geometry.x, columns.valid.start, following[1], self._tiling.width, scores.shape[2])
        class_map, confidence = self._answer(scores, y, x)
        cells = scores[:, : y.cells.stop - y.cells.start, : x.cells.stop - x.cells.start]
        return SegmentedWindow(y.pixels, x.pixels, class_map, confidence, y.cells, x.cells, cells)

    def _answer(
        self, scores: NDArray[np.float32], y: "_Window", x: "_Window"
    ) -> tuple[ClassMap, NDArray[np.uint8] | None]:
        dtype = self._tiling.info.label_map.id_dtype
        if self._tiling.info.class_map_at == "cell":
            nearest = np.ix_(y.nearest(), x.nearest())
            confidence = _confidence(scores)[nearest] if self._with_confidence else None
            return scores.argmax(0).astype(dtype)[nearest], confidence
        width = x.pixels.stop - x.pixels.start
        rows = max(1, _BAND_BYTES // max(1, 4 * len(scores) * width))
        grid = _WindowGrid(y, x)
        class_map: ClassMap = np.empty((y.pixels.stop - y.pixels.start, width), dtype)
        confidence = np.empty(class_map.shape, np.uint8) if self._with_confidence else None
        for start in range(y.pixels.start, y.pixels.stop, rows):
            band = slice(start, min(start + rows, y.pixels.stop))
            values = np.stack([resample_window(score, grid, band, x.pixels) for score in scores])
            place = slice(band.start - y.pixels.start, band.stop - y.pixels.start)
            class_map[place] = values.argmax(0)
            if confidence is not None:
                confidence[place] = _confidence(values)
        return class_map, confidence


class _Seam:
    """Joins arrays that overlap along an axis, and holds back the part of each that the next one will change."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._held: NDArray[np.float32] | None = None

    def join(self, scores: NDArray[np.float32], cells: slice, following: int | None) -> NDArray[np.float32]:
        """Return the scores up to the first cell of the next array, which does not change that cell."""
        scores = np.moveaxis(scores, self._axis, 0).copy()
        if self._held is not None:
            overlap = len(self._held)
            ramp = (np.arange(overlap, dtype=np.float32) / overlap)[:, None, None]
            scores[:overlap] = self._held + (scores[:overlap] - self._held) * ramp
        self._held = None
        if following is not None:
            self._held = scores[following - cells.start :].copy()
            scores = scores[: following - cells.start + 1]
        return np.moveaxis(scores, 0, self._axis)


@dataclass(frozen=True)
class _Window:
    """A window along one axis, whose pixels lie between the centres of its first and last cell."""

    axis: AxisGeometry
    first: int
    count: int
    pixels: slice
    cells: slice

    @classmethod
    def between(cls, axis: AxisGeometry, first: int, following: int | None, size: int, count: int) -> "_Window":
        """Return the window from a cell to the first cell of the next window, or to the image's end."""
        start = 0 if first == 0 else _pixel(axis, first, size)
        stop = size if following is None else _pixel(axis, following, size)
        return cls(axis, first, count, slice(start, stop), slice(first, first + count - (following is not None)))

    @property
    def stride(self) -> int:
        return self.axis.stride

    def centre(self, cell: int) -> float:
        return self.axis.centre(self.first + cell)

    def nearest(self) -> NDArray[np.intp]:
        """Return the nearest cell of each pixel; half-way between two, the one with the even index in the image."""
        u = (np.arange(self.pixels.start, self.pixels.stop) - self.axis.centre(0)) / self.axis.stride
        return np.clip(np.rint(u).astype(np.intp) - self.first, 0, self.count - 1)


@dataclass(frozen=True)
class _WindowGrid:
    y: _Window
    x: _Window


def _pixel(axis: AxisGeometry, cell: int, size: int) -> int:
    """Return the first pixel at or after a cell's centre."""
    return min(max(int(np.ceil(axis.centre(cell))), 0), size)


def _following(spans: tuple[Span, ...], span: Span) -> int | None:
    """Return the first valid cell of the next span."""
    behind = spans.index(span) + 1
    return spans[behind].valid.start if behind < len(spans) else None


def _confidence(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the softmax probability of the highest of (K, ...) scores, times 255, rounded; 0 where a score is NaN."""
    with np.errstate(invalid="ignore"):
        levels: NDArray[np.float32] = np.rint(255 / np.exp(scores - scores.max(0)).sum(0))
    return np.nan_to_num(levels, copy=False).astype(np.uint8)

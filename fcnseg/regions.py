"""Regions: the connected parts of an image in which a class is probable, with boxes and scores.

The probability of a class is the softmax over all classes at the heatmap's cells, interpolated bilinearly to the
image's pixels. A region is a set of pixels at which one class's probability reaches a threshold and which are
8-connected (horizontally, vertically or diagonally). Regions of different classes may overlap if the threshold is below
one half.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import UsageError
from fcnseg.resample import Grid, resample_window, span
from fcnseg.types import ClassInfo, Segmentation, require_names

DEFAULT_THRESHOLD = 0.5
MIN_THRESHOLD = 0.01
"""With a lower threshold each of a thousand classes covers whole images: useless, and a minute's work per megapixel."""
DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
_MOST_PIXELS = 2**64 - 1  # the largest value of the contract's field
# Interpolation in float32 may exceed the highest of its cells, by less than this relative amount.
_ROUNDING = 1e-6
_WINDOW_PIXELS = 1 << 12  # a window's fixed cost, as a number of pixels; the cost of its own pixels comes on top
_BAND_PIXELS, _MOST_BANDS = 1 << 16, 16
# Per pixel: the plane, its threshold mask, labels, a band. Per cell: clusters, and the data of one region per 4 cells.
_PIXEL_BYTES, _CELL_BYTES = 12, 48


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels.

    Attributes:
        top: First row.
        left: First column.
        height: Rows, at least 1.
        width: Columns, at least 1.
    """

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> "Box":
        """Return the tight box of the pixels set in an (H, W) mask; at least one must be set."""
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        return cls(top, left, height, width)


@dataclass(frozen=True)
class Region:
    """A connected part of an image in which a class is probable.

    Attributes:
        info: The class.
        box: The region's tight box, in the image's pixels.
        score: Mean probability of the class over the region's pixels, from the threshold to `peak`.
        peak: The highest probability at any of the region's pixels, up to 1.
        pixels: Number of the region's pixels, from 1 to the number of pixels of the box.
    """

    info: ClassInfo
    box: Box
    score: float
    peak: float
    pixels: int


@dataclass(frozen=True)
class RegionQuery:
    """Which regions are wanted.

    Attributes:
        classes: Names (any case) or decimal ids; empty stands for all classes.
        threshold: The least probability of a region's pixels, from 0.01 to below 1.
        limit: The most regions to return, those with the highest scores; 1 to 1000.
        min_pixels: The fewest pixels of a region, 1 to 2^64 - 1; very small regions are often noise near a large one.

    Raises:
        UsageError: Threshold, limit or size is out of range, or classes is a single string, a generator or numbers.
    """

    classes: tuple[str, ...] = ()
    threshold: float = DEFAULT_THRESHOLD
    limit: int = DEFAULT_LIMIT
    min_pixels: int = 1

    def __post_init__(self) -> None:
        require_names("the regions' classes", self.classes)
        require_threshold(self.threshold)
        require_limit(self.limit)
        if not 1 <= self.min_pixels <= _MOST_PIXELS:
            raise UsageError(
                f"the regions' least size is {self.min_pixels} pixels; it must be from 1 to {_MOST_PIXELS}"
            )


def require_threshold(threshold: float) -> None:
    """Check a threshold.

    Raises:
        UsageError: The threshold is not from 0.01 to below 1.
    """
    if not MIN_THRESHOLD <= threshold < 1:
        raise UsageError(f"the regions' threshold is {threshold:g}; it must be from {MIN_THRESHOLD:g} to below 1")


def require_limit(limit: int) -> None:
    """Check a limit.

    Raises:
        UsageError: The limit is not from 1 to 1000.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise UsageError(f"the regions' limit is {limit}; it must be from 1 to {MAX_LIMIT}")


def find_regions(
    segmentation: Segmentation,
    grid: Grid,
    query: RegionQuery = RegionQuery(),
    check: Callable[[], object] = lambda: None,
) -> tuple[Region, ...]:
    """Find the regions of an image, one class at a time, so that memory does not grow with the number of classes.

    Args:
        segmentation: The image's segmentation: its class map gives the size, its heatmap the probabilities.
        grid: The model's geometry.
        query: Which regions are wanted.
        check: Called before each class, before each part of the image that is searched, and during that search; an
            error that it raises aborts the search.

    Returns:
        Regions by descending score; ties by class id, then by the position of their boxes, top to bottom.

    Raises:
        UsageError: The model has no such class; the message names the closest.
    """
    label_map = segmentation.label_map
    wanted = dict.fromkeys(label_map.find(name) for name in query.classes) or label_map.classes
    found = (region for info in wanted for region in _regions_of(info, segmentation, grid, query, check))
    return tuple(heapq.nsmallest(query.limit, found, key=_rank))


def search_bytes(height: int, width: int, cells: int) -> int:
    """Estimate the most bytes that the search for an image's regions takes, in addition to the probabilities.

    Args:
        height: The image's rows.
        width: The image's columns.
        cells: Number of cells of one class's heatmap.
    """
    return height * width * _PIXEL_BYTES + cells * _CELL_BYTES


def _rank(region: Region) -> tuple[float, int, int, int, int, int]:
    box = region.box
    return -region.score, region.info.id, box.top, box.left, box.height, box.width


def _regions_of(
    info: ClassInfo, segmentation: Segmentation, grid: Grid, query: RegionQuery, check: Callable[[], object]
) -> Iterator[Region]:
    """Yield a class's regions: from each window at most `query.limit`, those of the highest rank."""
    check()
    height, width = segmentation.class_map.shape
    for at_cells, cells in _windows(segmentation.probabilities_while(check)[info.id], grid, query.threshold):
        check()
        rows = span(grid.y, at_cells.shape[0], height, cells.top, cells.top + cells.height - 1)
        columns = span(grid.x, at_cells.shape[1], width, cells.left, cells.left + cells.width - 1)
        if rows.start == rows.stop or columns.start == columns.stop:
            continue  # cells that see only padding
        plane = resample_window(at_cells, grid, rows, columns)
        check()
        np.minimum(plane, 1, out=plane)
        inside = plane >= query.threshold
        count, labels, stats = _components(inside)
        boxes, pixels = stats[1:, :4], stats[1:, cv2.CC_STAT_AREA]
        sums, peaks = _sums_and_peaks(plane, inside, labels, count, check)
        scores = sums / pixels
        for i in _first(scores, boxes, np.flatnonzero(pixels >= query.min_pixels), query.limit):
            left, top, wide, high = boxes[i].tolist()
            box = Box(rows.start + top, columns.start + left, high, wide)
            yield Region(info, box, float(scores[i]), float(peaks[i]), int(pixels[i]))


def _windows(at_cells: NDArray[np.float32], grid: Grid, threshold: float) -> Iterator[tuple[NDArray[np.float32], Box]]:
    """Split a class's probabilities, (h, w), into windows whose regions can be found independently.

    An interpolated value is at most the highest of the four cells around it. A region's pixels thus lie between cells
    that reach the threshold and their neighbours, and regions can touch only if these neighbourhoods do: each cluster
    of connected neighbourhoods has regions of its own. A few small windows cost less than a plane of the image's size.
    Many windows, or windows that enclose each other, would cost more: then a single window holds them all.

    Yields:
        The probabilities within a window and 0 elsewhere, and the box of its cells. The array is valid only until the
        next one is yielded.
    """
    reaching = at_cells >= threshold * (1 - _ROUNDING)
    if not reaching.any():
        return
    around = cv2.dilate(reaching.view(np.uint8), np.ones((3, 3), np.uint8)).view(np.bool_)
    count, labels, stats = _components(around)
    pixels_per_cell = grid.y.stride * grid.x.stride
    cells = (stats[1:, cv2.CC_STAT_WIDTH] * stats[1:, cv2.CC_STAT_HEIGHT]).sum(dtype=np.int64)
    whole = Box.around(around)
    if cells * pixels_per_cell + (count - 1) * _WINDOW_PIXELS >= whole.height * whole.width * pixels_per_cell:
        yield at_cells, whole
        return
    alone = np.zeros_like(at_cells)
    for label in range(1, count):
        left, top, wide, high = stats[label, :4].tolist()
        within = slice(top, top + high), slice(left, left + wide)
        alone[within] = np.where(labels[within] == label, at_cells[within], 0)
        yield alone, Box(top, left, high, wide)
        alone[within] = 0


def _components(mask: NDArray[np.bool_]) -> tuple[int, NDArray[np.int32], NDArray[np.int32]]:
    """Return the number of labels (0 is the background), the label of each pixel, and box and area by label."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return count, cast("NDArray[np.int32]", labels), cast("NDArray[np.int32]", stats)


def _sums_and_peaks(
    plane: NDArray[np.float32],
    inside: NDArray[np.bool_],
    labels: NDArray[np.int32],
    count: int,
    check: Callable[[], object],
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the sum and the maximum of each region's values, by label from 1; computed a band of rows at a time."""
    sums, peaks = np.zeros(count), np.zeros(count, np.float32)
    height = max(1, max(_BAND_PIXELS, plane.size // _MOST_BANDS) // plane.shape[1])
    for start in range(0, plane.shape[0], height):
        check()
        band = slice(start, start + height)
        within = inside[band]
        values, owners = plane[band][within], labels[band][within]
        sums += np.bincount(owners, values, count)
        np.maximum.at(peaks, owners, values)
    return sums[1:], peaks[1:]


def _first(
    scores: NDArray[np.float64], boxes: NDArray[np.int32], candidates: NDArray[np.intp], limit: int
) -> list[int]:
    """Return the first `limit` candidates by rank; all of them, in any order, if there are no more than that."""
    if candidates.size > limit:
        least = np.partition(scores[candidates], -limit)[-limit]
        candidates = candidates[scores[candidates] >= least]
        left, top, wide, high = boxes[candidates].T
        candidates = candidates[np.lexsort((wide, high, left, top, -scores[candidates]))[:limit]]
    indexes: list[int] = candidates.tolist()
    return indexes

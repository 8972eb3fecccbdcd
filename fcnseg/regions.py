"""Regions: the connected parts of an image in which a class is probable, with boxes and scores.

The probability of a class is the softmax over all classes at the heatmap's cells, brought to the image's pixels
bilinearly. A region is a set of pixels of one class at which it reaches a threshold and which are connected, sideways,
upwards or diagonally. Regions of different classes overlap where the threshold is below one half.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import UsageError
from fcnseg.resample import Grid, resample_window, span
from fcnseg.types import ClassInfo, Segmentation

DEFAULT_THRESHOLD = 0.5
MIN_THRESHOLD = 0.01
"""Below it, each of a thousand classes covers whole images: a minute's work for a megapixel, and no use."""
DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
# Interpolation in float32 may end above the highest of its cells by less than this share.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels.

    Attributes:
        top: Its first row.
        left: Its first column.
        height: Rows, at least 1.
        width: Columns, at least 1.
    """

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> "Box":
        """Return the tight box of the pixels set in an (H, W) mask, of which there must be at least one."""
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        return cls(top, left, height, width)


@dataclass(frozen=True)
class Region:
    """A connected part of an image in which a class is probable.

    Attributes:
        info: The class.
        box: Its tight box, in the image's pixels.
        score: Mean probability of the class over its pixels, from the threshold to `peak`.
        peak: The highest probability at any of its pixels, up to 1.
        pixels: Its pixels, at least 1 and at most the box's.
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
        limit: How many regions at most, those with the highest scores; 1 to 1000.
        min_pixels: The fewest pixels of a region, at least 1; smaller ones are often crumbs of a neighbour.

    Raises:
        UsageError: Threshold, limit or size is out of range.
    """

    classes: tuple[str, ...] = ()
    threshold: float = DEFAULT_THRESHOLD
    limit: int = DEFAULT_LIMIT
    min_pixels: int = 1

    def __post_init__(self) -> None:
        require_threshold(self.threshold)
        require_limit(self.limit)
        if self.min_pixels < 1:
            raise UsageError(f"the regions' least size is {self.min_pixels} pixels; it must be at least 1")


def require_threshold(threshold: float) -> None:
    """Check a threshold.

    Raises:
        UsageError: It is not a probability from 0.01 to below 1.
    """
    if not MIN_THRESHOLD <= threshold < 1:
        raise UsageError(f"the regions' threshold is {threshold:g}; it must be from {MIN_THRESHOLD:g} to below 1")


def require_limit(limit: int) -> None:
    """Check a limit.

    Raises:
        UsageError: It is not from 1 to 1000.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise UsageError(f"the regions' limit is {limit}; it must be from 1 to {MAX_LIMIT}")


def find_regions(segmentation: Segmentation, grid: Grid, query: RegionQuery = RegionQuery()) -> tuple[Region, ...]:
    """Find the regions of an image, a class at a time: memory does not grow with the number of classes.

    Args:
        segmentation: The image's; its class map gives the size, its heatmap the probabilities.
        grid: The model's geometry.
        query: Which regions are wanted.

    Returns:
        Regions by descending score; equal ones by class id, then by the place of their boxes, top to bottom.

    Raises:
        UsageError: The model has no such class; the message names the closest.
    """
    label_map = segmentation.label_map
    wanted = dict.fromkeys(label_map.find(name) for name in query.classes) or label_map.classes
    found = (region for info in wanted for region in _regions_of(info, segmentation, grid, query.threshold))
    large = (region for region in found if region.pixels >= query.min_pixels)
    return tuple(heapq.nsmallest(query.limit, large, key=_rank))


def _rank(region: Region) -> tuple[float, int, int, int, int, int]:
    box = region.box
    return -region.score, region.info.id, box.top, box.left, box.height, box.width


def _regions_of(info: ClassInfo, segmentation: Segmentation, grid: Grid, threshold: float) -> Iterator[Region]:
    height, width = segmentation.class_map.shape
    for at_cells, cells in _clusters(segmentation.probabilities[info.id], threshold):
        rows = span(grid.y, at_cells.shape[0], height, cells.top, cells.top + cells.height - 1)
        columns = span(grid.x, at_cells.shape[1], width, cells.left, cells.left + cells.width - 1)
        if rows.start == rows.stop or columns.start == columns.stop:
            continue  # cells that look at the padding alone
        plane = np.minimum(resample_window(at_cells, grid, rows, columns), 1)
        count, labels, stats, _ = cv2.connectedComponentsWithStats((plane >= threshold).view(np.uint8), connectivity=8)
        for label in range(1, count):  # 0 is what lies below the threshold
            left, top, wide, high = (int(value) for value in stats[label, :4])
            within = slice(top, top + high), slice(left, left + wide)
            values = plane[within][labels[within] == label]
            box = Box(rows.start + top, columns.start + left, high, wide)
            yield Region(info, box, float(values.mean(dtype=np.float64)), float(values.max()), values.size)


def _clusters(at_cells: NDArray[np.float32], threshold: float) -> Iterator[tuple[NDArray[np.float32], Box]]:
    """Split a class's probabilities, (h, w), into clusters of cells whose regions cannot touch each other's.

    An interpolated value is at most the highest of the four cells around it. A region's pixels thus lie between cells
    that reach the threshold and their neighbours, and regions touch only where such neighbourhoods do. A few small
    windows cost less than a plane of the image's size.

    Yields:
        The probabilities within one cluster and 0 elsewhere, and the box of its cells.
    """
    reaching = (at_cells >= threshold * (1 - _ROUNDING)).view(np.uint8)
    if not reaching.any():
        return
    around = cv2.dilate(reaching, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(around, connectivity=8)
    for label in range(1, count):
        left, top, wide, high = (int(value) for value in stats[label, :4])
        yield np.where(labels == label, at_cells, np.float32(0)), Box(top, left, high, wide)

"""Segments an image tile by tile, with the working memory of one tile, however large the image is."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fcnseg.blending import Blender
from fcnseg.segmenter import Segmenter
from fcnseg.tiling import Tiling, plan_tiles
from fcnseg.types import ClassMap, Segmentation
from fcnseg.windows import ArrayImage, SegmentedWindow, Windowed


def no_progress(done: int, total: int) -> None:
    """Report no progress."""


def segment_windows(
    segmenter: Segmenter,
    image: Windowed,
    tiling: Tiling,
    *,
    confidence: bool = False,
    progress: Callable[[int, int], None] = no_progress,
    at_a_time: int = 1,
) -> Iterator[SegmentedWindow]:
    """Segment an image tile by tile.

    If `tiling.exact`, scores and confidences are those of the whole image up to float32 rounding. Otherwise the window
    of a tile ends where its overlap with the next tile begins; the scores of overlaps are kept to be blended.

    Args:
        segmenter: The model.
        image: The image.
        tiling: From `plan_tiles` for this model and this image's size.
        confidence: Whether to compute the confidence map too.
        progress: Told how many tiles are done, and of how many.
        at_a_time: Runs at a time, a tile each.

    Yields:
        The windows, row by row.

    Raises:
        ImageError: The image cannot be read.
    """
    blender = None if tiling.exact else Blender(tiling, confidence=confidence)
    answers = _answers(segmenter, image, tiling, at_a_time, confidence=confidence and blender is None)
    for done, (rows, columns) in enumerate(tiling):
        progress(done, len(tiling))
        answer = next(answers)
        if blender is not None:
            heatmap = answer.heatmap[:, rows.valid_in_tile, columns.valid_in_tile]
            yield blender.blend(rows, columns, heatmap)
            continue
        core = rows.core_in_tile, columns.core_in_tile
        yield SegmentedWindow(
            rows.core,
            columns.core,
            answer.class_map[core],
            None if answer.confidence is None else answer.confidence[core],
            rows.cells,
            columns.cells,
            answer.heatmap[:, rows.cells_in_tile, columns.cells_in_tile],
        )


def _answers(
    segmenter: Segmenter, image: Windowed, tiling: Tiling, at_a_time: int, *, confidence: bool
) -> Iterator[Segmentation]:
    """Yield the answers of the tiles in order, while the next ones are computed."""
    with ThreadPoolExecutor(at_a_time, "fcnseg-tile") as runs:
        under_way: deque[Future[Segmentation]] = deque()
        for rows, columns in tiling:  # windows are read only by this thread: files are not thread-safe
            pixels = image.read(rows.read, columns.read)
            under_way.append(runs.submit(segmenter.segment, pixels, confidence=confidence))
            if len(under_way) == at_a_time:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def segment_in_tiles(
    segmenter: Segmenter,
    image: Windowed | NDArray[np.uint8],
    tile: int | None,
    *,
    confidence: bool = False,
    progress: Callable[[int, int], None] = no_progress,
    at_a_time: int = 1,
) -> Segmentation:
    """Segment an image tile by tile into one result; only the working memory is that of a tile.

    Args:
        segmenter: The model.
        image: The image, or its pixels as (H, W, 3) uint8 RGB.
        tile: As for `plan_tiles`.
        confidence: Whether to compute the confidence map too.
        progress: Told how many tiles are done, and of how many.
        at_a_time: Runs at a time, a tile each.

    Raises:
        ImageError: The image cannot be read, or is not of that shape and dtype.
        UsageError: `tile` is not positive.
    """
    if isinstance(image, np.ndarray):
        image = ArrayImage(image)
    height, width, info = image.height, image.width, segmenter.info
    tiling = plan_tiles(info, height, width, tile)
    class_map: ClassMap = np.empty((height, width), info.label_map.id_dtype)
    confidences = np.empty((height, width), np.uint8) if confidence else None
    heatmap = np.empty((len(info.label_map), *heatmap_shape(tiling)), np.float32)
    windows = segment_windows(segmenter, image, tiling, confidence=confidence, progress=progress, at_a_time=at_a_time)
    for window in windows:
        class_map[window.rows, window.columns] = window.class_map
        heatmap[:, window.cell_rows, window.cell_columns] = window.heatmap
        if confidences is not None and window.confidence is not None:
            confidences[window.rows, window.columns] = window.confidence
    return Segmentation(class_map, heatmap, confidences, info.label_map)


def heatmap_shape(tiling: Tiling) -> tuple[int, int]:
    """Return (h, w) of the whole image's heatmap, which takes 4 * K * h * w bytes."""
    geometry = tiling.info.geometry
    return geometry.y.cells(tiling.height), geometry.x.cells(tiling.width)

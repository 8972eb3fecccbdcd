"""A model file that runs in a job's own process."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import ImageTooLargeError
from fcnseg.files import sha256_of
from fcnseg.folder.answers import LocalAnswer, WrittenAnswer
from fcnseg.folder.mask_files import MaskFormat
from fcnseg.folder.models import Loaded, Outcome
from fcnseg.folder.options import FolderOptions
from fcnseg.large_images import open_windowed
from fcnseg.large_masks import segment_to_mask
from fcnseg.segmenter import Segmenter
from fcnseg.tiled import segment_in_tiles
from fcnseg.tiling import choose_tile, plan_tiles
from fcnseg.types import LabelMap

# Below this, it need not be measured whether a run fits into memory.
_MOST_BYTES_PER_PIXEL = 2000


class LocalModel:
    """A model file that runs in this process.

    Args:
        segmenter: The model.
        options: How the job is done.
        progress: Told, of an image in tiles, its file, how many are done, and of how many.
    """

    remote = False
    at_a_time = 1

    def __init__(
        self,
        segmenter: Segmenter,
        options: FolderOptions,
        progress: Callable[[Path, int, int], None] = lambda _path, _done, _total: None,
    ) -> None:
        self._segmenter = segmenter
        self._options = options
        self._progress = progress
        self.batch = options.batch or segmenter.tuned.max_batch or options.batch_on(segmenter.device)

    @property
    def label_map(self) -> LabelMap:
        """What ids mean."""
        return self._segmenter.info.label_map

    @property
    def name(self) -> str:
        """The file's name, and what it is."""
        info = self._segmenter.info
        return f"{self._segmenter.engine.path.name}, {info.variant} of {info.architecture}"

    @property
    def at(self) -> str:
        """The device."""
        return self._segmenter.device

    @property
    def identity(self) -> dict[str, Any]:
        """The file's hash and what it says of itself."""
        info = self._segmenter.info
        return {
            "sha256": sha256_of(self._segmenter.engine.path),
            "architecture": info.architecture,
            "variant": info.variant,
            "label_map_hash": info.label_map.hash,
        }

    def kind(self, image: NDArray[np.uint8]) -> object:
        """Return the size that the image is padded to."""
        return self._segmenter.canonical_shape(image)

    def held_bytes(self, height: int, width: int) -> int:
        """Pixels, ids and confidence and what is written of them, and scores at the cells."""
        geometry = self._segmenter.info.geometry
        cells = geometry.y.cells(height) * geometry.x.cells(width)
        return height * width * (7 + 2 * self.label_map.id_dtype.itemsize) + cells * len(self.label_map) * 8

    def segment(self, loaded: Sequence[Loaded]) -> list[Outcome]:
        """Run the model: on all at once, or one by one where they are in tiles or the batch fails."""
        first = loaded[0]
        try:
            if first.image is None:
                return [self._segment_to_mask(first)]
            height, width = first.image.shape[:2]
            tile = self._tile(height, width)
            tiling = plan_tiles(self._segmenter.info, height, width, tile)
            if len(tiling) == 1:
                return self._segment_whole(loaded)
            if len(loaded) == 1:
                return [self._segment_in_tiles(first, first.image, tile, tiling.notice)]
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - onnxruntime's have no base: out of memory for one image, for example
            if len(loaded) == 1:
                return [error]
        return [outcome for item in loaded for outcome in self.segment([item])]

    def _segment_whole(self, loaded: Sequence[Loaded]) -> list[Outcome]:
        images = [item.image for item in loaded if item.image is not None]
        began = time.perf_counter()
        found = self._segmenter.segment_batch(images, confidence=self._options.confidence)
        infer_ms = (time.perf_counter() - began) * 1000
        grid = self._segmenter.info.geometry
        return [
            LocalAnswer(segmentation, grid, {"decode": item.decode_ms, "infer": infer_ms})
            for item, segmentation in zip(loaded, found, strict=True)
        ]

    def _segment_in_tiles(
        self, item: Loaded, image: NDArray[np.uint8], tile: int | None, notice: str | None
    ) -> Outcome:
        began = time.perf_counter()
        segmentation = segment_in_tiles(
            self._segmenter,
            image,
            tile,
            confidence=self._options.confidence,
            progress=partial(self._progress, item.source),
        )
        timings_ms = {"decode": item.decode_ms, "infer": (time.perf_counter() - began) * 1000}
        return LocalAnswer(segmentation, self._segmenter.info.geometry, timings_ms, notice)

    def _segment_to_mask(self, item: Loaded) -> Outcome:
        """Segment an image that is never in memory whole, and write its mask."""
        options = self._options
        if options.draws or MaskFormat.of(item.mask.suffix) is not MaskFormat.TIFF or not options.upright:
            raise ImageTooLargeError(
                f"{str(item.too_large).partition(';')[0]}; of an image of this size there is a mask alone, as TIFF and"
                " upright: use --format tiff, and leave out what stands beside masks"
            )
        began = time.perf_counter()
        with open_windowed(item.source, options.limits) as image:
            tile = self._tile(image.height, image.width)
            tiling = plan_tiles(self._segmenter.info, image.height, image.width, tile)
            progress = partial(self._progress, item.source)
            classes = segment_to_mask(self._segmenter, image, tiling, item.mask, progress)
        timings_ms = {"infer": (time.perf_counter() - began) * 1000}
        return WrittenAnswer((image.height, image.width), classes, timings_ms, tiling.notice)

    def _tile(self, height: int, width: int) -> int | None:
        """Return the size of an image's tiles; None where it is not cut."""
        info, wanted, memory = self._segmenter.info, self._options.tile, self._options.memory_bytes
        if wanted == "auto" and math.prod(info.geometry.padded(height, width)) * _MOST_BYTES_PER_PIXEL > memory:
            measured = self._segmenter.engine.measured()
            cost = measured.bytes_per_pixel if self._options.confidence else measured.plain_bytes_per_pixel
            return choose_tile(info, height, width, memory / cost)
        return wanted if isinstance(wanted, int) else None

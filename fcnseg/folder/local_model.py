"""A model file that runs in the job's process."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnseg.devices import resolve_device
from fcnseg.engine import PIPELINE_OPTIONS, Engine
from fcnseg.errors import ImageTooLargeError
from fcnseg.files import sha256_of
from fcnseg.folder.answers import LocalAnswer, WrittenAnswer
from fcnseg.folder.mask_files import MaskFormat
from fcnseg.folder.models import Loaded, Outcome
from fcnseg.folder.options import FolderOptions
from fcnseg.folder.turns import Turns
from fcnseg.images import ImageLimits
from fcnseg.large_images import open_windowed
from fcnseg.large_masks import segment_to_mask
from fcnseg.segmenter import Segmenter, load
from fcnseg.tiled import segment_in_tiles
from fcnseg.tiling import choose_tile, plan_tiles
from fcnseg.tuning import NOTHING_SAID, default_settings, tuned_settings
from fcnseg.types import LabelMap, answer_bytes

_MOST_BYTES_PER_PIXEL = 2000
_CUDA_BATCH = 8
_RUNS_OF_WHOLE_IMAGES = 2
"""Concurrent runs that share the memory if a net depends on the whole image: the CPU's default number of runs."""


def open_model(
    path: Path, device: str = "auto", threads: int | None = None, *, tuned: bool = True, single: bool = False
) -> tuple[Segmenter, int]:
    """Open a model file for a job.

    On a CPU, throughput is highest with two concurrent runs on half of the cores each, because the threads of a run
    wait for each other at every layer. Settings that `fcnseg tune` found for the file on this machine take precedence.

    Args:
        path: A model file.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`.
        threads: CPU threads within an operator, with one run at a time; None takes both numbers from the settings
            found, or the defaults.
        tuned: Whether to use the settings that `fcnseg tune` found.
        single: Whether there is only one image, which then gets all cores.

    Returns:
        The model, and the best number of concurrent runs.

    Raises:
        ModelFileError: The file is not a valid fcnseg model.
        DeviceError: The device cannot run it.
    """
    device = resolve_device(device)
    if single or threads is not None:
        return load(path, device, threads, tuned=tuned, pipeline=True), 1
    found = tuned_settings(path, device) if tuned else NOTHING_SAID
    runs = found.runners or (default_settings(device).runners if device == "cpu" else 1) or 1
    found = found.with_runs(runs)
    options = found.engine_options(PIPELINE_OPTIONS)
    if device == "cpu":
        options = options.beside(runs)
    return Segmenter(Engine(path, device, options), found), runs


class LocalModel:
    """A model file that runs in this process.

    Args:
        segmenter: The model.
        options: How the job is done.
        progress: Called for an image in tiles with its file, the number of tiles done, and the number of all tiles.
        at_a_time: Number of concurrent runs, which share the memory for runs.

    Attributes:
        at_a_time: Number of concurrent runs.
        batch: Most images in a run.
    """

    remote = False

    def __init__(
        self,
        segmenter: Segmenter,
        options: FolderOptions,
        progress: Callable[[Path, int, int], None] = lambda _path, _done, _total: None,
        at_a_time: int = 1,
    ) -> None:
        self._segmenter = segmenter
        self._options = options
        self._progress = progress
        self.at_a_time = at_a_time
        self.batch = options.batch or segmenter.tuned.max_batch or (1 if segmenter.device == "cpu" else _CUDA_BATCH)
        # If a net depends on the whole image, its masks depend on the tiling, which must not depend on `at_a_time`.
        sharing = _RUNS_OF_WHOLE_IMAGES if segmenter.info.global_context else at_a_time
        self._memory = options.memory_bytes // sharing
        self._tiles_at_a_time = min(at_a_time, sharing)
        self._turns = Turns(at_a_time)
        self._measuring = threading.Lock()

    @property
    def label_map(self) -> LabelMap:
        """What the ids mean."""
        return self._segmenter.info.label_map

    @property
    def name(self) -> str:
        """The file's name, variant and architecture."""
        info = self._segmenter.info
        return f"{self._segmenter.engine.path.name}, {info.variant} of {info.architecture}"

    @property
    def at(self) -> str:
        """The device."""
        return self._segmenter.device

    @property
    def identity(self) -> dict[str, Any]:
        """The file's hash, architecture, variant and label map hash."""
        info = self._segmenter.info
        return {
            "sha256": sha256_of(self._segmenter.engine.path),
            "architecture": info.architecture,
            "variant": info.variant,
            "label_map_hash": info.label_map.hash,
        }

    @property
    def tile(self) -> str | int:
        """The option `tile`; with `auto` and a net that depends on the whole image, also the memory of a run."""
        tile = self._options.tile
        if tile == "auto" and self._segmenter.info.global_context:
            return f"auto, {self._memory} bytes a run"
        return tile

    @property
    def limits(self) -> ImageLimits:
        """The limits in the options."""
        return self._options.limits

    def kind(self, image: NDArray[np.uint8]) -> object:
        """Return the size that the image is padded to."""
        return self._segmenter.canonical_shape(image)

    def held_bytes(self, height: int, width: int) -> int:
        """Return the bytes that an image and its answer, with the scores of all classes, take."""
        scores = self._segmenter.info.geometry.cells(height, width) * len(self.label_map)
        return answer_bytes(self.label_map, height * width, scores)

    def segment(self, loaded: Sequence[Loaded]) -> list[Outcome]:
        """Run the model on all images at once, or one by one if they are tiled or the batch fails."""
        first = loaded[0]
        try:
            if first.image is None:
                return [self._segment_to_mask(first)]
            height, width = first.image.shape[:2]
            tile = self._tile(height, width)
            tiling = plan_tiles(self._segmenter.info, height, width, tile)
            if len(tiling) == 1:
                most = self._batch_for(height, width)
                parts = [loaded[i : i + most] for i in range(0, len(loaded), most)]
                return [outcome for part in parts for outcome in self._segment_whole(part)]
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
        with self._turns.taking(self._turns_for(len(images), *images[0].shape[:2])):
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
        with self._turns.taking(self.at_a_time):
            began = time.perf_counter()
            segmentation = segment_in_tiles(
                self._segmenter,
                image,
                tile,
                confidence=self._options.confidence,
                progress=partial(self._tell_progress, item),
                at_a_time=self._tiles_at_a_time,
            )
            infer_ms = (time.perf_counter() - began) * 1000
        timings_ms = {"decode": item.decode_ms, "infer": infer_ms}
        return LocalAnswer(segmentation, self._segmenter.info.geometry, timings_ms, notice)

    def _segment_to_mask(self, item: Loaded) -> Outcome:
        """Segment an image that is never held in memory as a whole, and write its mask."""
        options = self._options
        with self._turns.taking(self.at_a_time), open_windowed(item.source, options.limits) as image:
            if options.draws or MaskFormat.of(item.mask.suffix) is not MaskFormat.TIFF or not options.upright:
                raise ImageTooLargeError(
                    f"{str(item.too_large).partition(';')[0]}; an image of this size gets only a mask, an upright TIFF:"
                    " use --format tiff, and leave out --stored-orientation and all outputs beside masks"
                )
            began = time.perf_counter()
            tile = self._tile(image.height, image.width)
            tiling = plan_tiles(self._segmenter.info, image.height, image.width, tile)
            progress = partial(self._tell_progress, item)
            classes = segment_to_mask(self._segmenter, image, tiling, item.mask, progress, self._tiles_at_a_time)
            timings_ms = {"infer": (time.perf_counter() - began) * 1000}
        return WrittenAnswer((image.height, image.width), classes, timings_ms, tiling.notice)

    def _tell_progress(self, item: Loaded, done: int, total: int) -> None:
        item.require_time()
        self._progress(item.source, done, total)

    def _tile(self, height: int, width: int) -> int | None:
        """Return the size of an image's tiles; None if the image is not tiled."""
        wanted = self._options.tile
        if wanted == "auto" and not self._fits(height, width):
            return choose_tile(self._segmenter.info, height, width, self._memory / self._bytes_per_pixel())
        return wanted if isinstance(wanted, int) else None

    def _batch_for(self, height: int, width: int) -> int:
        """Return the number of images of this size for which a run has memory, at least 1."""
        if self.batch == 1 or self._fits(height, width, self.batch):
            return self.batch
        return max(1, int(self._memory / (self._pixels(height, width) * self._bytes_per_pixel())))

    def _fits(self, height: int, width: int, count: int = 1) -> bool:
        """Tell whether a run on images of this size surely has enough memory, without measuring what it takes."""
        return count * self._pixels(height, width) * _MOST_BYTES_PER_PIXEL <= self._memory

    def _turns_for(self, count: int, height: int, width: int) -> int:
        """Return the number of turns whose memory a run on `count` images of this size takes."""
        if self._tiles_at_a_time == self.at_a_time:
            return 1
        share = self._options.memory_bytes / self.at_a_time
        taken = count * self._pixels(height, width) * self._bytes_per_pixel()
        return min(self.at_a_time, max(1, math.ceil(taken / share)))

    def _pixels(self, height: int, width: int) -> int:
        return math.prod(self._segmenter.info.geometry.padded(height, width))

    def _bytes_per_pixel(self) -> float:
        """Return the bytes of memory that a run takes for each pixel."""
        with self._measuring:
            measured = self._segmenter.engine.measured()
        return measured.bytes_per_pixel if self._options.confidence else measured.plain_bytes_per_pixel

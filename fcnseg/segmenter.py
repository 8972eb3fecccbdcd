"""The one path from an image to its segmentation, for the Python API, the folder command and the server alike."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnseg import images as image_files
from fcnseg.devices import resolve_device
from fcnseg.engine import DEFAULT_OPTIONS, PIPELINE_OPTIONS, Engine, EngineOptions
from fcnseg.model_file import ModelInfo
from fcnseg.tuning import NOTHING_SAID, Settings, tuned_settings
from fcnseg.types import Segmentation


class Segmenter:
    """Segments images of any size with one model.

    An image is edge-padded to its canonical shape: the largest size that the net pads to the same shape. Images of one
    canonical shape can then share a batch, and CUDA, which has to prepare for every new shape, sees few shapes. The
    graph's own padding repeats the same edge pixels, so the result does not change. On the CPU, a batch of images of
    equal size is not padded.

    Attributes:
        engine: Runs the model.
        tuned: The settings from `MODEL.tune.json` that were used when the model was opened.
    """

    def __init__(self, engine: Engine, tuned: Settings = NOTHING_SAID) -> None:
        self.engine = engine
        self.tuned = tuned

    @property
    def info(self) -> ModelInfo:
        """The metadata of the model file."""
        return self.engine.info

    @property
    def device(self) -> str:
        """Where the model runs: `cpu` or `cuda:N`."""
        return self.engine.device

    def segment(self, image: str | Path | bytes | NDArray[np.uint8], *, confidence: bool = False) -> Segmentation:
        """Segment one image.

        Args:
            image: A path, an encoded image's bytes, or pixels as (H, W, 3) uint8 RGB.
            confidence: Whether to compute the confidence map too.

        Raises:
            ImageError: The image cannot be read, or the array has another shape or dtype.
        """
        if isinstance(image, bytes):
            image = image_files.decode(image)
        elif isinstance(image, (str, Path)):
            image = image_files.read(Path(image))
        return self.segment_batch([image], confidence=confidence)[0]

    def segment_batch(
        self, images: Sequence[NDArray[np.uint8]], *, confidence: bool = False, beside: bool = False
    ) -> list[Segmentation]:
        """Segment images that share one canonical shape (see `canonical_shape`) in one run of the engine.

        Args:
            images: At least one (H, W, 3) uint8 RGB image; sizes may differ.
            confidence: Whether to compute the confidence maps too.
            beside: Whether other runs are in progress, so that this run leaves CPU threads to them
                (`EngineOptions.runs`).

        Raises:
            ImageError: An image is not (H, W, 3) uint8.
            ValueError: The canonical shapes differ, or there is no image.
        """
        shapes = {self.canonical_shape(image) for image in images}
        if len(shapes) != 1:
            raise ValueError(f"a batch needs images of one canonical shape; got {sorted(shapes)}")
        answers = self.segment_prepared(
            images, [_size(image) for image in images], confidence=confidence, beside=beside
        )
        # Copies: a caller that keeps one image's answer must not keep the arrays of the whole batch.
        return answers if len(answers) == 1 else [_copy(answer) for answer in answers]

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Prepare an image for a run: pad it to its canonical shape on a GPU, return it unchanged on the CPU."""
        return image if self.device == "cpu" else _edge_pad(image, self.canonical_shape(image))

    def segment_prepared(
        self,
        images: Sequence[NDArray[np.uint8]],
        sizes: Sequence[tuple[int, int]],
        *,
        confidence: bool = False,
        heatmap: bool = True,
        beside: bool = False,
    ) -> list[Segmentation]:
        """Segment images that `prepare` may have padded already, in other threads; otherwise as `segment_batch`.

        Args:
            images: Images of one canonical shape, prepared or not.
            sizes: The (height, width) of each image before it was prepared.
            confidence: As for `segment_batch`.
            heatmap: Whether to return heatmaps; if False, they are arrays without cells.
            beside: As for `segment_batch`.

        Returns:
            Segmentations that are views: each keeps the arrays of the whole batch in memory.
        """
        batch = images
        if self.device != "cpu" or len({image.shape for image in images}) > 1:
            shape = self.canonical_shape(images[0])
            batch = [_edge_pad(image, shape) for image in images]
        output = self.engine.run(batch, confidence=confidence, heatmap=heatmap, beside=beside)
        answers = []
        for i, (height, width) in enumerate(sizes):
            confidence_map = None if output.confidence is None else output.confidence[i, :height, :width]
            class_map = output.class_map[i, :height, :width]
            answers.append(Segmentation(class_map, output.heatmap[i], confidence_map, self.info.label_map))
        return answers

    def canonical_shape(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        """Return the (height, width) that an image is padded to; images of equal canonical shape can share a batch.

        Raises:
            ImageError: The image is not (H, W, 3) uint8 with at least one pixel.
        """
        image_files.require_pixels(image)
        return self.info.geometry.canonical(*image.shape[:2])


def load(
    path: str | Path,
    device: str = "auto",
    threads: int | None = None,
    options: EngineOptions | None = None,
    *,
    tuned: bool = True,
    pipeline: bool = False,
) -> Segmenter:
    """Open a model file.

    Args:
        path: A file made by `fcnseg heatmap` or `fcnseg export`.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`.
        threads: CPU threads within an operator, 0 for one per physical core; None takes the number from `options`.
        options: How the model runs; None takes the settings that `fcnseg tune` found for this file on this machine, if
            they apply to one run at a time, else the defaults.
        tuned: Whether to use the settings that `fcnseg tune` found.
        pipeline: Whether other threads decode and write images while the model runs and need some cores
            (`PIPELINE_OPTIONS`); has no effect if `options` is given.

    Raises:
        ModelFileError: The file is not a valid fcnseg model.
        DeviceError: The device cannot run it.
    """
    path, device = Path(path), resolve_device(device)
    defaults = PIPELINE_OPTIONS if pipeline else DEFAULT_OPTIONS
    found = tuned_settings(path, device).with_runs(1) if tuned and options is None else NOTHING_SAID
    if threads is not None:
        found = replace(found, threads=None)
    settings = Settings(threads=threads).over(found)
    return Segmenter(Engine(path, device, settings.engine_options(options or defaults)), found)


def _size(image: NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _copy(answer: Segmentation) -> Segmentation:
    confidence = None if answer.confidence is None else answer.confidence.copy()
    return replace(answer, class_map=answer.class_map.copy(), heatmap=answer.heatmap.copy(), confidence=confidence)


def _edge_pad(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    below, right = shape[0] - image.shape[0], shape[1] - image.shape[1]
    if below == right == 0:
        return image
    padded: NDArray[np.uint8] = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
    return padded

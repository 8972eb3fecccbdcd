"""Measuring a model on a split: a model file through the runtime, or a checkpoint through torch."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

import fcnseg
from fcnseg.errors import DatasetError
from fcnseg.types import ClassMap, LabelMap
from training.config import Device
from training.data import Sample, read_sample
from training.device import resolve_device
from training.metrics import Meter, Scores
from training.run import Run, open_run


class Predictor(Protocol):
    """Turns images into class maps.

    Attributes:
        label_map: What the ids in its class maps mean.
    """

    label_map: LabelMap

    def predict(self, image: NDArray[np.uint8]) -> ClassMap:
        """Return the class map (H, W) of an image (H, W, 3) uint8 RGB."""
        ...


class RuntimePredictor:
    """A model file as its users run it."""

    def __init__(self, path: Path, device: str) -> None:
        self._segmenter = fcnseg.load(path, device)
        self.label_map = self._segmenter.info.label_map

    def predict(self, image: NDArray[np.uint8]) -> ClassMap:
        """Return the class map (H, W) of an image (H, W, 3) uint8 RGB."""
        return self._segmenter.segment(image).class_map


class CheckpointPredictor:
    """A trained torch model, before export."""

    def __init__(self, run: Run, device: str) -> None:
        self._device = torch.device(device)
        self._model = run.model.to(self._device)
        self.label_map = run.label_map

    @torch.inference_mode()
    def predict(self, image: NDArray[np.uint8]) -> ClassMap:
        """Return the class map (H, W) of an image (H, W, 3) uint8 RGB."""
        scores = self._model.pixel_scores(torch.from_numpy(image)[None].to(self._device))
        class_map: ClassMap = scores.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
        return class_map


def open_predictor(path: Path, device: Device) -> Predictor:
    """Open a model file (`.onnx`) through the runtime, or a run folder or checkpoint through torch.

    Raises:
        UsageError: The path is neither.
        ModelFileError: The file was not made by fcnseg.
        DeviceError: The device is not there.
    """
    if path.suffix == ".onnx":
        return RuntimePredictor(path, device)
    return CheckpointPredictor(open_run(path), resolve_device(device))


def require_same_classes(model: LabelMap, data: LabelMap) -> None:
    """Refuse to measure a model against masks in which ids mean something else.

    Raises:
        DatasetError: Names or their order differ; the message tells the first difference.
    """
    names = [[info.name for info in label_map.classes] for label_map in (model, data)]
    for i, (ours, theirs) in enumerate(zip_longest(*names)):
        if ours != theirs:
            raise DatasetError(
                f"id {i} is {_quoted(ours)} in the model ({len(model)} classes) but {_quoted(theirs)} in the data"
                f" ({len(data)} classes); evaluate on data with the classes that the model was trained for"
            )


def measure(predictor: Predictor, samples: Sequence[Sample], ignore_id: int | None) -> Iterator[Scores]:
    """Measure class maps against masks, image by image.

    Args:
        predictor: What is measured.
        samples: Checked images and masks.
        ignore_id: The value of pixels without a label.

    Yields:
        After each image, the scores of all images so far.
    """
    meter = Meter(len(predictor.label_map), ignore_id)
    for sample in samples:
        image, mask = read_sample(sample)
        meter.update(torch.from_numpy(predictor.predict(image)), torch.from_numpy(mask))
        yield meter.compute()


def _quoted(name: str | None) -> str:
    return "no class" if name is None else repr(name)

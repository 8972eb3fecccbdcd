"""Evaluate a model on a split: a model file with the runtime, or a checkpoint with torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

import fcnseg
from fcnseg.errors import DatasetError
from fcnseg.geometry import Geometry
from fcnseg.resample import resample_to_pixels
from fcnseg.types import ClassMap, LabelMap
from training.config import Device
from training.device import exact_products, resolve_device
from training.metrics import FullMeter, Measures, Scores
from training.run import Run, open_run
from training.samples import Sample, read_sample

_Value = TypeVar("_Value", np.uint8, np.float32)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's prediction for one image.

    Attributes:
        class_map: (H, W) class ids.
        confidence: (H, W) uint8, the class's probability times 255, rounded.
    """

    class_map: ClassMap
    confidence: NDArray[np.uint8]


class Predictor(Protocol):
    """Predicts the class maps of images.

    Attributes:
        label_map: What the ids in the class maps mean.
    """

    label_map: LabelMap

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Return the prediction for an image, (H, W, 3) uint8 RGB."""
        ...


class Net(Predictor, Protocol):
    """A predictor that also returns its scores.

    Attributes:
        file: The file with the weights.
        geometry: Where the cells of the heatmaps lie.
    """

    file: Path
    geometry: Geometry

    def heatmap(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores (K, h, w) at the net's own stride of an image (H, W, 3) uint8 RGB."""
        ...


class ServedNet:
    """A model file, run in the same way as by the server."""

    def __init__(self, path: Path, device: str) -> None:
        self._segmenter = fcnseg.load(path, device)
        self.file = path
        self.label_map = self._segmenter.info.label_map
        self.geometry = self._segmenter.info.geometry

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Return the prediction that the server would return."""
        answer = self._segmenter.segment(image, confidence=True)
        if answer.confidence is None:
            raise RuntimeError("a confidence that was asked for did not come")
        return Prediction(answer.class_map, answer.confidence)

    def heatmap(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores (K, h, w) of an image (H, W, 3) uint8 RGB."""
        return self._segmenter.segment(image).heatmap


class TorchNet:
    """A trained torch model, before export."""

    def __init__(self, run: Run, device: str) -> None:
        self._device = torch.device(device)
        self._model = run.model.to(self._device)
        self.file = run.checkpoint
        self.label_map = run.record.label_map
        self.geometry = self._model.geometry

    @torch.inference_mode()
    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Return the prediction that the model file would return."""
        with exact_products():
            class_map, _, confidence = self._model(self._batch(image))
        return Prediction(class_map[0].cpu().numpy(), confidence[0].cpu().numpy())

    @torch.inference_mode()
    def heatmap(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores (K, h, w) of an image (H, W, 3) uint8 RGB."""
        with exact_products():
            scores: NDArray[np.float32] = self._model.heatmap(self._batch(image))[0].cpu().numpy()
        return scores

    def _batch(self, image: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(image)[None].to(self._device)


class AveragedPredictor:
    """Test-time augmentation: averages a net's predictions over scales and mirroring; better than served, but slower.

    Each view's scores are resampled to the image's pixels and turned into probabilities by softmax; the class with the
    highest mean probability wins, and that probability is the confidence.

    Args:
        net: The net.
        scales: Sizes of the views, relative to the image's.
        flip: Whether to add the mirrored image at each scale.
    """

    def __init__(self, net: Net, scales: Sequence[float], *, flip: bool) -> None:
        self._net = net
        self._scales = scales
        self._sides = (False, True) if flip else (False,)
        self.label_map = net.label_map

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Return the class with the highest mean probability, and that probability."""
        mean = np.zeros((len(self.label_map), *image.shape[:2]), np.float32)
        for scale in self._scales:
            for mirrored in self._sides:
                mean += self._probabilities(image, scale, mirrored=mirrored)
        mean /= len(self._scales) * len(self._sides)
        class_map: ClassMap = mean.argmax(axis=0).astype(self.label_map.id_dtype)
        return Prediction(class_map, (mean.max(axis=0) * 255).round().astype(np.uint8))

    def _probabilities(self, image: NDArray[np.uint8], scale: float, *, mirrored: bool) -> NDArray[np.float32]:
        """Return the (K, H, W) softmax of one view's scores at the image's pixels."""
        height, width = image.shape[:2]
        view_height, view_width = max(1, round(height * scale)), max(1, round(width * scale))
        shrinks = view_height * view_width < height * width
        view = _resize(image, view_height, view_width, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        heatmap = self._net.heatmap(np.ascontiguousarray(view[:, ::-1]) if mirrored else view)
        scores = np.empty((len(heatmap), height, width), np.float32)
        for k, cells in enumerate(heatmap):
            pixels = resample_to_pixels(cells, self._net.geometry, view_height, view_width)
            scores[k] = _resize(pixels[:, ::-1] if mirrored else pixels, height, width, cv2.INTER_LINEAR)
        scores -= scores.max(axis=0)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=0)
        return scores


def open_predictor(path: Path, device: Device) -> Net:
    """Open a model file (`.onnx`, in any case) with the runtime, or a run folder or checkpoint with torch.

    Raises:
        UsageError: The path is neither.
        ModelFileError: The file was not made by fcnseg.
        DeviceError: The device is not available.
    """
    if path.suffix.lower() == ".onnx":
        return ServedNet(path, device)
    return TorchNet(open_run(path), resolve_device(device))


def require_same_classes(model: LabelMap, data: LabelMap) -> None:
    """Check that the ids of a model and of the masks have the same meaning.

    Raises:
        DatasetError: Names or their order differ; the message states the first difference.
    """
    names = [[info.name for info in label_map.classes] for label_map in (model, data)]
    for i, (ours, theirs) in enumerate(zip_longest(*names)):
        if ours != theirs:
            raise DatasetError(
                f"id {i} is {_quoted(ours)} in the model ({len(model)} classes) but {_quoted(theirs)} in the data"
                f" ({len(data)} classes); evaluate on data with the classes that the model was trained for"
            )


def measure(predictor: Predictor, samples: Sequence[Sample], ignore_id: int | None) -> Iterator[Measures]:
    """Measure class maps against masks, image by image.

    Args:
        predictor: The predictor to measure.
        samples: Images and masks that have been checked.
        ignore_id: The value of pixels without a label.

    Yields:
        After each image, the measures of all images so far.
    """
    meter = FullMeter(len(predictor.label_map), ignore_id)
    for sample in samples:
        image, mask = read_sample(sample)
        prediction = predictor.predict(image)
        meter.update(prediction.class_map, mask, prediction.confidence)
        yield meter.compute()


def extremes(images: Sequence[Scores], count: int) -> tuple[list[int], list[int]]:
    """Find the images with the highest and the lowest mean IoU; no image is in both lists.

    Args:
        images: The scores of each image; images without a labelled pixel are left out.
        count: Most images in each list.

    Returns:
        Indices of the best images, the best first; and of the worst, the worst first.
    """
    labelled = [i for i, scores in enumerate(images) if any(iou is not None for iou in scores.per_class_iou)]
    ranked = sorted(labelled, key=lambda i: -images[i].mean_iou)
    best = ranked[: min(count, len(ranked) - len(ranked) // 2)]
    return best, ranked[len(best) :][::-1][:count]


def _resize(picture: NDArray[_Value], height: int, width: int, how: int) -> NDArray[_Value]:
    if picture.shape[:2] == (height, width):
        return picture
    return cv2.resize(picture, (width, height), interpolation=how).astype(picture.dtype, copy=False)


def _quoted(name: str | None) -> str:
    return "no class" if name is None else repr(name)

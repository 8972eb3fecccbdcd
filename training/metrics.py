"""Metrics: how well class maps match their masks, over all labelled pixels of all images.

Pixels without a label are ignored. A class that occurs neither in a mask nor in a class map has no metrics and is left
out of the means; a class that is only predicted has an IoU of 0 and no accuracy, since no mask contains it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

from fcnseg.types import ClassMap

BOUNDARY_RATIO = 0.02
"""Width of the boundary band as a share of the image's diagonal: the default of boundary IoU (arXiv 2103.16562)."""
CALIBRATION_BINS = 15
"""255 / 15 is an integer, so that bin edges coincide with rounded confidences."""
_LEVELS = 256


@dataclass(frozen=True)
class Scores:
    """Scores computed from a confusion matrix. Every value is in 0..1; a mean over no classes is 0.0.

    Attributes:
        mean_iou: Mean of `per_class_iou` over the classes that occur.
        pixel_accuracy: Share of the labelled pixels whose class is right.
        mean_accuracy: Mean recall: the share of a class's pixels that is predicted right, averaged over the classes in
            the masks.
        frequency_weighted_iou: Mean of `per_class_iou`, each weighted by the class's pixels in the masks.
        per_class_iou: Intersection over union of each class, in the order of the ids; None for a class that occurs
            neither in a mask nor in a class map.
    """

    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    per_class_iou: tuple[float | None, ...]


@dataclass(frozen=True, eq=False)
class Measures(Scores):
    """All metrics of a set of images.

    Attributes:
        boundary_iou: Mean over the classes that occur of the IoU of their boundary bands, in 0..1.
        calibration_error: Expected calibration error of the confidence, in 0..1; None when no pixel is labelled.
        confusion: (K, K) int64 pixel counts, rows being true classes and columns predicted ones.
        images: The scores of each image alone, in the order in which they were counted.
    """

    boundary_iou: float
    calibration_error: float | None
    confusion: NDArray[np.int64]
    images: tuple[Scores, ...]


class Meter:
    """Accumulates a confusion matrix batch by batch on any device, for the validation during training.

    Args:
        num_classes: Number of classes, K.
        ignore_id: The value of pixels without a label, which are ignored.
        device: The device that holds the matrix.
    """

    def __init__(self, num_classes: int, ignore_id: int | None, device: torch.device | str = "cpu") -> None:
        # Masks have been checked already; validating every value again would take most of the time.
        self._matrix = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_id, validate_args=False).to(device)

    def update(self, class_map: Tensor, mask: Tensor) -> None:
        """Count one image or batch.

        Args:
            class_map: (..., H, W) predicted ids, 0 to K - 1, of any integer type.
            mask: True ids of the same shape, 0 to K - 1 or the ignore id.
        """
        self._matrix.update(class_map.long(), mask.long())

    def compute(self) -> Scores:
        """Return the scores of everything counted so far."""
        return score(self._matrix.compute())


class FullMeter:
    """Accumulates all metrics image by image, in memory that does not grow with the number of pixels.

    Args:
        num_classes: Number of classes, K.
        ignore_id: The value of pixels without a label, which are ignored.
        boundary_ratio: Width of the boundary band as a share of each image's diagonal.
    """

    def __init__(self, num_classes: int, ignore_id: int | None, boundary_ratio: float = BOUNDARY_RATIO) -> None:
        self._num_classes = num_classes
        self._ignore_id = ignore_id
        self._boundary_ratio = boundary_ratio
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self._bands = np.zeros((2, num_classes), np.int64)  # intersections, unions
        # torchmetrics' calibration error stores every pixel; for 256 confidence levels, two counts per level suffice.
        self._levels = np.zeros((2, _LEVELS), np.int64)  # pixels, correct pixels
        self._images: list[Scores] = []

    def update(self, class_map: ClassMap, mask: NDArray[np.uint8], confidence: NDArray[np.uint8]) -> None:
        """Count one image.

        Args:
            class_map: (H, W) predicted ids, 0 to K - 1.
            mask: (H, W) true ids, 0 to K - 1 or the ignore id.
            confidence: (H, W) uint8, the predicted class's probability times 255, rounded.
        """
        truth, predicted = torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(class_map.astype(np.int64))
        confusion = multiclass_confusion_matrix(
            predicted, truth, self._num_classes, ignore_index=self._ignore_id, validate_args=False
        )
        self._confusion += confusion
        self._images.append(score(confusion))
        labelled = mask != self._ignore_id if self._ignore_id is not None else np.ones(mask.shape, bool)
        self._bands += band_overlaps(class_map, mask, labelled, self._num_classes, self._boundary_ratio)
        levels, right = confidence[labelled], (class_map == mask)[labelled]
        self._levels += [np.bincount(chosen, minlength=_LEVELS) for chosen in (levels, levels[right])]

    def compute(self) -> Measures:
        """Return the measures of everything counted so far."""
        intersections, unions = self._bands
        return Measures(
            **vars(score(self._confusion)),
            boundary_iou=_mean((intersections[unions > 0] / unions[unions > 0]).tolist()),
            calibration_error=expected_calibration_error(*self._levels),
            confusion=self._confusion.numpy().copy(),
            images=tuple(self._images),
        )


def score(confusion: Tensor) -> Scores:
    """Compute the scores of a confusion matrix.

    Args:
        confusion: (K, K) pixel counts, rows being true classes and columns predicted ones.
    """
    counts = confusion.double()
    hits, true = counts.diagonal().tolist(), counts.sum(1).tolist()
    unions = (counts.sum(0) + counts.sum(1) - counts.diagonal()).tolist()
    total = sum(true)
    per_class = tuple((hit / union if union else None) for hit, union in zip(hits, unions, strict=True))
    weighted = [iou * pixels for iou, pixels in zip(per_class, true, strict=True) if iou is not None]
    return Scores(
        mean_iou=_mean([iou for iou in per_class if iou is not None]),
        pixel_accuracy=sum(hits) / total if total else 0.0,
        mean_accuracy=_mean([hit / pixels for hit, pixels in zip(hits, true, strict=True) if pixels]),
        frequency_weighted_iou=sum(weighted) / total if total else 0.0,
        per_class_iou=per_class,
    )


def band_overlaps(
    class_map: ClassMap, mask: NDArray[np.uint8], labelled: NDArray[np.bool_], num_classes: int, ratio: float
) -> NDArray[np.int64]:
    """Count the pixels in the intersection and in the union of each class's two boundary bands, for boundary IoU.

    A class's band consists of its pixels that are within d pixels (in rows, columns and diagonals) of a pixel of
    another class or of the image's edge; d is `ratio` times the image's diagonal, rounded and at least 1. Pixels
    without a label belong to no class in both the mask and the class map, so that their border is a boundary in both.

    Args:
        class_map: (H, W) predicted ids, 0 to K - 1.
        mask: (H, W) true ids, 0 to K - 1 where labelled.
        labelled: (H, W) True where the mask has a label.
        num_classes: Number of classes, K.
        ratio: The band's width as a share of the diagonal.

    Returns:
        (2, K) int64: pixels in both bands, and pixels in at least one.
    """
    width = max(1, round(ratio * float(np.hypot(*mask.shape))))
    bands = [
        _band(np.where(labelled, ids.astype(np.uint16), np.uint16(num_classes)), num_classes, width)
        for ids in (mask, class_map)
    ]
    both = bands[0] & bands[1] & (mask == class_map)
    true, predicted, common = (
        np.bincount(ids[where], minlength=num_classes)
        for ids, where in ((mask, bands[0]), (class_map, bands[1]), (mask, both))
    )
    return np.stack([common, true + predicted - common])


def expected_calibration_error(pixels: NDArray[np.int64], right: NDArray[np.int64]) -> float | None:
    """Compute the mean distance between confidence and accuracy over bins of equal width, weighted by their pixels.

    The bins are those of arXiv 1706.04599: each includes its upper edge and excludes its lower one.

    Args:
        pixels: (256,) pixels by confidence times 255.
        right: (256,) correct pixels by confidence times 255.

    Returns:
        The error in 0..1; None if there are no pixels.
    """
    total = pixels.sum()
    if not total:
        return None
    levels = np.arange(_LEVELS)
    bins = np.maximum(levels - 1, 0) * CALIBRATION_BINS // (_LEVELS - 1)
    gaps = np.bincount(bins, weights=right - pixels * levels / (_LEVELS - 1))
    return float(np.abs(gaps).sum() / total)


def _band(ids: NDArray[np.uint16], none: int, width: int) -> NDArray[np.bool_]:
    """Mark the pixels of any class that have another id or the image's edge within `width` pixels."""
    # Erosion of all classes at once: the window around a pixel contains one class if its least and largest id agree.
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    least, largest = (
        change(ids, window, borderType=cv2.BORDER_CONSTANT, borderValue=float(none))
        for change in (cv2.erode, cv2.dilate)
    )
    band: NDArray[np.bool_] = (least != largest) & (ids != none)
    return band


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0

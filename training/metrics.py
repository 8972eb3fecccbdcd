"""How well class maps match their masks: pixel accuracy and intersection over union, from one confusion matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


@dataclass(frozen=True)
class Scores:
    """How well class maps match their masks, over all labelled pixels of all images.

    Attributes:
        mean_iou: Mean of `per_class_iou` over the classes that occur; 0.0 when no pixel is labelled.
        pixel_accuracy: Share of the labelled pixels whose class is right, in 0..1; 0.0 when no pixel is labelled.
        per_class_iou: Intersection over union of each class in 0..1, in the order of the ids; None for a class that
            occurs neither in a mask nor in a class map, which the mean leaves out.
    """

    mean_iou: float
    pixel_accuracy: float
    per_class_iou: tuple[float | None, ...]


class Meter:
    """Gathers a confusion matrix image by image.

    Args:
        num_classes: Number of classes, K.
        ignore_id: The value of pixels without a label, which count for nothing.
        device: Where the matrix lies.
    """

    def __init__(self, num_classes: int, ignore_id: int | None, device: torch.device | str = "cpu") -> None:
        # Masks are checked before anything is measured; looking at every value again would take most of the time.
        self._matrix = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_id, validate_args=False).to(device)

    def update(self, class_map: Tensor, mask: Tensor) -> None:
        """Count one image or batch.

        Args:
            class_map: (..., H, W) predicted ids, 0 to K - 1, of any integer type.
            mask: As many true ids, 0 to K - 1 or the ignore id.
        """
        self._matrix.update(class_map.long(), mask.long())

    def compute(self) -> Scores:
        """Return the scores of everything counted since the last reset."""
        return score(self._matrix.compute())

    def reset(self) -> None:
        """Forget what was counted."""
        self._matrix.reset()


def score(confusion: Tensor) -> Scores:
    """Compute the scores of a confusion matrix.

    Args:
        confusion: (K, K) pixel counts, rows being true classes and columns predicted ones.
    """
    counts = confusion.double()
    hits = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - hits
    total = counts.sum().item()
    per_class = tuple((hit / all_ if all_ else None) for hit, all_ in zip(hits.tolist(), union.tolist(), strict=True))
    present = [iou for iou in per_class if iou is not None]
    return Scores(
        mean_iou=sum(present) / len(present) if present else 0.0,
        pixel_accuracy=hits.sum().item() / total if total else 0.0,
        per_class_iou=per_class,
    )

"""What an evaluation found, as the figures of a JSON file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcnseg.types import LabelMap
from training.metrics import Measures


@dataclass(frozen=True)
class Subject:
    """What was measured, and on what.

    Attributes:
        model: The model file or checkpoint.
        model_sha256: SHA-256 (hex) of that file.
        label_map: The model's classes.
        data: The data folder.
        split: The split of the data that was measured.
        scales: Sizes of the views that were averaged, relative to the image's; empty where the model was run as served.
        flip: Whether mirrored views were averaged too.
    """

    model: Path
    model_sha256: str
    label_map: LabelMap
    data: Path
    split: str
    scales: tuple[float, ...] = ()
    flip: bool = False


def figures(subject: Subject, measures: Measures) -> dict[str, Any]:
    """Return everything that was found, as JSON has it.

    `per_class_iou` goes by name and is null for a class that occurs nowhere; rows of `confusion_matrix` are true
    classes and columns predicted ones, in the order of `classes`, in pixels. `scales` is empty and `flip` false where
    the figures are those of the model as it is served.
    """
    names = [info.name for info in subject.label_map.classes]
    return {
        "mean_iou": measures.mean_iou,
        "pixel_accuracy": measures.pixel_accuracy,
        "mean_accuracy": measures.mean_accuracy,
        "frequency_weighted_iou": measures.frequency_weighted_iou,
        "boundary_iou": measures.boundary_iou,
        "calibration_error": measures.calibration_error,
        "per_class_iou": dict(zip(names, measures.per_class_iou, strict=True)),
        "images": len(measures.images),
        "classes": names,
        "confusion_matrix": measures.confusion.tolist(),
        "model": str(subject.model),
        "model_sha256": subject.model_sha256,
        "label_map_hash": subject.label_map.hash,
        "data": str(subject.data),
        "split": subject.split,
        "scales": list(subject.scales),
        "flip": subject.flip,
    }


def to_json(found: dict[str, Any]) -> str:
    """Write figures as JSON, one to a line.

    Raises:
        ValueError: One of them is not a finite number.
    """
    lines = (f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in found.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"

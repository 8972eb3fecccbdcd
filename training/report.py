"""The results of an evaluation as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcnseg.types import LabelMap
from training.metrics import Measures


@dataclass(frozen=True)
class Subject:
    """The model that was measured, and the data.

    Attributes:
        model: The model file or checkpoint.
        model_sha256: SHA-256 (hex) of that file.
        label_map: The model's classes.
        data: The data folder.
        split: The split of the data that was measured.
        scales: Sizes of the views that were averaged, relative to the image's; empty if the model was run as served.
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
    """Return all results as a JSON object.

    `per_class_iou` is keyed by class name and null for a class that does not occur. `confusion_matrix` has pixel
    counts; its rows are true classes and its columns predicted ones, in the order of `classes`. If the results are
    those of the model as served, `scales` is empty and `flip` is false.
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
    """Write results as JSON, one per line.

    Raises:
        ValueError: A number is not finite.
    """
    lines = (f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in found.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"

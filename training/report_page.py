"""The results of an evaluation as one self-contained HTML page, without scripts, other files or network access."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnseg.page import percent, render_page
from fcnseg.thumbnails import data_uri, paint_ids, shrink
from fcnseg.types import ClassInfo, ClassMap, LabelMap

_LONGER_SIDE = 360  # pixels of a picture; with 24 pictures the page stays below 5 MB
_MATRIX_CLASSES = 24


@dataclass(frozen=True, eq=False)
class Example:
    """An image that the page shows.

    Attributes:
        name: Its file name.
        mean_iou: The image's mean IoU, in 0..1.
        pixel_accuracy: The image's pixel accuracy, in 0..1.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8 ids, or the ignore id.
        prediction: (H, W) class ids.
    """

    name: str
    mean_iou: float
    pixel_accuracy: float
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: ClassMap


@dataclass(frozen=True)
class _Bar:
    """One class in the list of classes."""

    info: ClassInfo
    iou: float | None
    share: float


@dataclass(frozen=True)
class _Row:
    """One true class in the confusion matrix: a row of counts, and of shares of the class's pixels."""

    name: str
    cells: tuple[tuple[int, float], ...]


def to_html(
    found: dict[str, Any],
    label_map: LabelMap,
    best: Sequence[Example],
    worst: Sequence[Example],
    ignore_id: int | None,
) -> bytes:
    """Render a page with results and examples.

    Args:
        found: The result of `training.report.figures`.
        label_map: Gives the colours.
        best: Images to show as the best.
        worst: Images to show as the worst.
        ignore_id: The value of pixels without a label, drawn striped.

    Returns:
        UTF-8 HTML.
    """
    shown = replace(label_map, ignore_id=ignore_id)
    names, rows = _matrix(found["classes"], np.array(found["confusion_matrix"]))
    return render_page(
        "training",
        "report.html.jinja",
        found=found,
        headline=_headline(found),
        bars=_bars(label_map, found),
        columns=names,
        rows=rows,
        classes=label_map.classes,
        groups=[
            (title, [_pictures(example, shown) for example in examples])
            for title, examples in (("Best images", best), ("Worst images", worst))
            if examples
        ],
    )


def _headline(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, value and meaning of the metrics of the whole split."""
    error = found["calibration_error"]
    return [
        ("Mean IoU", percent(found["mean_iou"]), "over the classes that occur"),
        ("Pixel accuracy", percent(found["pixel_accuracy"]), "labelled pixels that are right"),
        ("Mean accuracy", percent(found["mean_accuracy"]), "share of a class that is found, over the classes"),
        ("Frequency-weighted IoU", percent(found["frequency_weighted_iou"]), "classes weighted by their pixels"),
        ("Boundary IoU", percent(found["boundary_iou"]), "within 2 % of the diagonal of a boundary"),
        ("Calibration error", "none" if error is None else percent(error), "confidence against accuracy; 0 is best"),
    ]


def _bars(label_map: LabelMap, found: dict[str, Any]) -> list[_Bar]:
    """Return the classes, the best first and those that do not occur last."""
    pixels = np.array(found["confusion_matrix"]).sum(axis=1)
    total = max(1, int(pixels.sum()))
    bars = [_Bar(info, found["per_class_iou"][info.name], float(pixels[info.id] / total)) for info in label_map.classes]
    return sorted(bars, key=lambda bar: -1.0 if bar.iou is None else bar.iou, reverse=True)


def _matrix(names: Sequence[str], counts: NDArray[np.int64]) -> tuple[list[str], list[_Row]]:
    """Return the confusion matrix of the classes with the most pixels; all others are merged into one."""
    if len(names) > _MATRIX_CLASSES:
        ranked = np.argsort(-(counts.sum(axis=0) + counts.sum(axis=1)), kind="stable")
        kept, others = np.sort(ranked[:_MATRIX_CLASSES]), ranked[_MATRIX_CLASSES:]
        counts = np.vstack([counts[kept], counts[others].sum(axis=0, keepdims=True)])
        counts = np.hstack([counts[:, kept], counts[:, others].sum(axis=1, keepdims=True)])
        names = [*(names[i] for i in kept), f"{len(others)} other classes"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = (tuple(zip(row.tolist(), parts.tolist(), strict=True)) for row, parts in zip(counts, shares, strict=True))
    return list(names), [_Row(name, row) for name, row in zip(names, cells, strict=True)]


def _pictures(example: Example, label_map: LabelMap) -> dict[str, Any]:
    return {
        "name": example.name,
        "mean_iou": example.mean_iou,
        "pixel_accuracy": example.pixel_accuracy,
        "pictures": [
            ("image", data_uri(shrink(example.image, _LONGER_SIDE), ".jpg")),
            ("truth", data_uri(paint_ids(example.truth, label_map, _LONGER_SIDE), ".png")),
            ("prediction", data_uri(paint_ids(example.prediction, label_map, _LONGER_SIDE), ".png")),
        ],
    }

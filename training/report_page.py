"""What an evaluation found, as one HTML page that needs no other file, no network and no script."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

import fcnseg
from fcnseg import render
from fcnseg.types import ClassInfo, ClassMap, LabelMap

_TEMPLATE = "report.html.jinja"
_LONGER_SIDE = 360  # of the pictures: 24 of them keep the page below 5 MB
_MATRIX_CLASSES = 24
_STRIPES = ((176, 176, 176), (214, 214, 214))
_STRIPE = 4


@dataclass(frozen=True, eq=False)
class Example:
    """An image that the page shows.

    Attributes:
        name: Its file name.
        mean_iou: Its own mean IoU, in 0..1.
        pixel_accuracy: Its own pixel accuracy, in 0..1.
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
    """One true class in the confusion matrix: its cells are counts, and shares of its pixels."""

    name: str
    cells: tuple[tuple[int, float], ...]


def to_html(
    found: dict[str, Any],
    label_map: LabelMap,
    best: Sequence[Example],
    worst: Sequence[Example],
    ignore_id: int | None,
) -> bytes:
    """Lay out figures and examples as a page.

    Args:
        found: What `training.report.figures` returned.
        label_map: Gives the colours.
        best: Images to show as the best.
        worst: Images to show as the worst.
        ignore_id: The value of pixels without a label, drawn striped.

    Returns:
        UTF-8 HTML.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = _percent
    names, rows = _matrix(found["classes"], np.array(found["confusion_matrix"]))
    page = environment.from_string(files("training").joinpath(_TEMPLATE).read_text("utf-8")).render(
        found=found,
        headline=_headline(found),
        bars=_bars(label_map, found),
        columns=names,
        rows=rows,
        classes=label_map.classes,
        groups=[
            (title, [_pictures(example, label_map, ignore_id) for example in examples])
            for title, examples in (("Best images", best), ("Worst images", worst))
            if examples
        ],
        version=fcnseg.__version__,
    )
    # A file's name need not be valid Unicode.
    return page.encode("utf-8", "backslashreplace")


def _headline(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of the figures for the whole split."""
    error = found["calibration_error"]
    return [
        ("Mean IoU", _percent(found["mean_iou"]), "over the classes that occur"),
        ("Pixel accuracy", _percent(found["pixel_accuracy"]), "labelled pixels that are right"),
        ("Mean accuracy", _percent(found["mean_accuracy"]), "share of a class that is found, over the classes"),
        ("Frequency-weighted IoU", _percent(found["frequency_weighted_iou"]), "classes weighted by their pixels"),
        ("Boundary IoU", _percent(found["boundary_iou"]), "within 2 % of the diagonal of a boundary"),
        ("Calibration error", "none" if error is None else _percent(error), "confidence against accuracy; 0 is best"),
    ]


def _bars(label_map: LabelMap, found: dict[str, Any]) -> list[_Bar]:
    """Return the classes, the best first and those that occur nowhere last."""
    pixels = np.array(found["confusion_matrix"]).sum(axis=1)
    total = max(1, int(pixels.sum()))
    bars = [_Bar(info, found["per_class_iou"][info.name], float(pixels[info.id] / total)) for info in label_map.classes]
    return sorted(bars, key=lambda bar: -1.0 if bar.iou is None else bar.iou, reverse=True)


def _matrix(names: Sequence[str], counts: NDArray[np.int64]) -> tuple[list[str], list[_Row]]:
    """Return the confusion matrix of the classes with the most pixels, the others counted as one."""
    if len(names) > _MATRIX_CLASSES:
        ranked = np.argsort(-(counts.sum(axis=0) + counts.sum(axis=1)), kind="stable")
        kept, others = np.sort(ranked[:_MATRIX_CLASSES]), ranked[_MATRIX_CLASSES:]
        counts = np.vstack([counts[kept], counts[others].sum(axis=0, keepdims=True)])
        counts = np.hstack([counts[:, kept], counts[:, others].sum(axis=1, keepdims=True)])
        names = [*(names[i] for i in kept), f"{len(others)} other classes"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = (tuple(zip(row.tolist(), parts.tolist(), strict=True)) for row, parts in zip(counts, shares, strict=True))
    return list(names), [_Row(name, row) for name, row in zip(names, cells, strict=True)]


def _pictures(example: Example, label_map: LabelMap, ignore_id: int | None) -> dict[str, Any]:
    height, width = example.truth.shape
    scale = min(1.0, _LONGER_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(example.image, size, interpolation=cv2.INTER_AREA)
    truth, prediction = (
        cv2.resize(ids.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST_EXACT)
        for ids in (example.truth, example.prediction)
    )
    painted = render.colour_mask(truth.astype(np.uint16), label_map)
    if ignore_id is not None:
        rows, columns = np.nonzero(truth == ignore_id)
        painted[rows, columns] = np.array(_STRIPES, np.uint8)[(rows + columns) // _STRIPE % 2]
    return {
        "name": example.name,
        "mean_iou": example.mean_iou,
        "pixel_accuracy": example.pixel_accuracy,
        "pictures": [
            ("image", _data_uri(image.astype(np.uint8), ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 85])),
            ("truth", _data_uri(painted, ".png", [])),
            ("prediction", _data_uri(render.colour_mask(prediction.astype(np.uint16), label_map), ".png", [])),
        ],
    }


def _data_uri(picture: NDArray[np.uint8], suffix: str, options: list[int]) -> str:
    encoded = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1]
    kind = {".jpg": "jpeg", ".png": "png"}[suffix]
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"

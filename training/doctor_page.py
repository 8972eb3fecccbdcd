"""The dataset doctor's findings as one self-contained HTML page, without scripts, other files or network access."""

from typing import Any

import cv2
import numpy as np

from fcnseg.errors import DatasetError
from fcnseg.page import render_page
from fcnseg.thumbnails import data_uri, paint_ids, shrink
from fcnseg.types import LabelMap
from training.doctor import Diagnosis
from training.samples import Sample, read_sample

_LONGER_SIDE = 360
_EXAMPLES = 6
_MESSAGES = 1000  # most messages shown per kind of finding; further ones are only counted


def to_html(diagnosis: Diagnosis) -> bytes:
    """Render a page with the findings, the classes' shares, and samples of each split with their masks.

    Returns:
        UTF-8 HTML.
    """
    dataset = diagnosis.dataset
    splits = {
        split: {
            "images": found.images,
            "size": found.size,
            "one_size": found.one_size,
            "shares": [pixels / max(1, sum(found.class_pixels)) for pixels in found.class_pixels],
            "unlabelled": found.ignored_pixels / max(1, sum(found.class_pixels) + found.ignored_pixels),
            "examples": _examples(dataset.split(split), dataset.label_map),
        }
        for split, found in diagnosis.contents.items()
    }
    return render_page(
        "training",
        "doctor.html.jinja",
        root=dataset.root,
        note=dataset.note,
        classes=dataset.label_map.classes,
        splits=splits,
        findings=diagnosis.findings,
        errors=sum(len(finding.messages) for finding in diagnosis.errors),
        cases=sum(len(finding.messages) for finding in diagnosis.findings),
        most=_MESSAGES,
    )


def _examples(samples: tuple[Sample, ...], label_map: LabelMap) -> list[dict[str, Any]]:
    """Return pictures of some readable samples, spread over the split."""
    found, count = [], min(_EXAMPLES, len(samples))
    for sample in [samples[i * len(samples) // count] for i in range(count)]:
        try:
            image, mask = read_sample(sample)
        except DatasetError:
            continue
        if mask[mask != label_map.ignore_id].max(initial=0) >= len(label_map):
            continue
        small, painted = shrink(image, _LONGER_SIDE), paint_ids(mask, label_map, _LONGER_SIDE)
        tinted = cv2.addWeighted(small, 0.5, painted, 0.5, 0).astype(np.uint8, copy=False)
        pictures = [("image", data_uri(small, ".jpg")), ("mask", data_uri(painted, ".png"))]
        found.append({"name": sample.name, "pictures": [*pictures, ("both", data_uri(tinted, ".jpg"))]})
    return found

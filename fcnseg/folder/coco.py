"""Merge all masks of a job into one COCO data set."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from fcnseg.files import replacing
from fcnseg.folder.manifest import read_rows
from fcnseg.folder.mask_files import coco_categories
from fcnseg.folder.names import COCO, MANIFEST
from fcnseg.types import LabelMap


def merge(output: Path, label_map: LabelMap) -> Path:
    """Merge the masks of a job, which are COCO data sets of one image each, into `coco.json`, one image at a time.

    Args:
        output: The job's output folder.
        label_map: What the ids mean.

    Returns:
        The path of `coco.json`.
    """
    path = output / COCO
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{{"categories": {json.dumps(coco_categories(label_map))},\n"images": [')
        _write_list(file, ({**_read(output / mask)["images"][0], "id": number} for number, mask in _masks(output)))
        file.write('],\n"annotations": [')
        _write_list(file, _annotations(output))
        file.write("]}\n")
    return path


def _annotations(output: Path) -> Iterable[dict[str, Any]]:
    count = 0
    for number, mask in _masks(output):
        for annotation in _read(output / mask)["annotations"]:
            count += 1
            yield {**annotation, "id": count, "image_id": number}


def _masks(output: Path) -> Iterable[tuple[int, str]]:
    found = (row.mask for row in read_rows(output / MANIFEST) if row.mask is not None)
    return enumerate(found, start=1)


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _write_list(file: TextIO, entries: Iterable[dict[str, Any]]) -> None:
    for number, entry in enumerate(entries):
        file.write(",\n" if number else "\n")
        json.dump(entry, file)

"""COCO: images and annotation files with polygons and run lengths, as COCO and three annotation tools lay them out.

    COCO                               CVAT                                 Label Studio   Roboflow
    annotations/instances_val2017.json annotations/instances_default.json   result.json    valid/_annotations.coco.json
    val2017/ or images/val2017/        images/default/ or images/           images/        valid/

Each annotation file is a split, whose name comes from the file's name or its folder; if a single file names no split,
its images are split by a hash. Class 0 is the background, and the categories follow in the order of their ids; a
category `background` is class 0 itself. An image without annotations is all background.
"""

import errno
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from fcnseg.errors import DatasetError
from fcnseg.types import LabelMap
from training.coco_masks import CocoMask, CocoObject
from training.labels import CLASSES_FILE, IGNORE_ID, Labels
from training.layouts.coco_file import CocoFile, CocoImage, read_coco
from training.layouts.listing import Layout, Listing, Pairs, Unpaired, split_name
from training.samples import Sample

_PLACES = ("*.json", "annotations/*.json", "*/_annotations.coco.json")
_OTHER_TASKS = ("captions_", "image_info_", "panoptic_", "person_keypoints_")
_BEGINNING = 2**16
_SECTION = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_BACKGROUND = "background"


def _fits(root: Path) -> bool:
    return bool(_annotation_files(root))


def _read(root: Path, labels: Labels | None) -> Listing:
    if labels is not None:
        raise DatasetError(f"{root / labels.source} does not go with COCO, whose files name the classes; take it out")
    paths: dict[str, Path] = {}
    for path in _annotation_files(root):
        split = split_name(_given_name(path))
        if split in paths:
            raise DatasetError(f"{paths[split]} and {path} are both split {split!r}; take one out")
        paths[split] = path
    files = {split: read_coco(path) for split, path in paths.items()}
    first, *others = files.values()
    for other in others:
        if other.categories != first.categories:
            raise DatasetError(f"{first.path} and {other.path} differ in their categories; give both the same")
    names, class_ids = _number(first)
    splits = {split: _pairs(root, file, class_ids) for split, file in files.items()}
    label_map = LabelMap.from_names(names, ignore_id=IGNORE_ID)
    if len(splits) > 1 or not splits.keys().isdisjoint({"train", "val", "test"}):
        return Listing.of_pairs(splits, label_map)
    (pairs,) = splits.values()
    return Listing.held_out(pairs, label_map, "write annotations/instances_train.json and instances_val.json")


def _annotation_files(root: Path) -> list[Path]:
    found = dict.fromkeys(path for place in _PLACES for path in sorted(root.glob(place)))
    return [
        path
        for path in found
        if path.is_file() and path.name != CLASSES_FILE and not path.name.startswith((".", *_OTHER_TASKS))
        if _looks_like_coco(path)
    ]


def _looks_like_coco(path: Path) -> bool:
    with path.open("rb") as file:
        return _SECTION.search(file.read(_BEGINNING)) is not None


def _given_name(path: Path) -> str:
    name = path.name.removesuffix(".json")
    return path.parent.name if name == "_annotations.coco" else name.removeprefix("instances_")


def _number(file: CocoFile) -> tuple[list[str], dict[int, int]]:
    """Return the names of the classes, and the class id of each category id."""
    names, class_ids = [_BACKGROUND], {}
    for category_id, name in file.categories.items():
        if name.casefold() == _BACKGROUND:
            class_ids[category_id] = 0
        else:
            class_ids[category_id] = len(names)
            names.append(name)
    if not 2 <= len(names) <= IGNORE_ID:
        raise DatasetError(
            f"{file.path} makes {len(names)} classes with the background; training takes 2 to {IGNORE_ID}"
        )
    return names, class_ids


def _pairs(root: Path, file: CocoFile, class_ids: Mapping[int, int]) -> Pairs:
    name = _given_name(file.path)
    places = (root / "images" / name, root / name, file.path.parent, root / "images", root)
    folders = [folder for folder in dict.fromkeys(places) if folder.is_dir()]
    looked = ", ".join(str(folder) for folder in folders)
    samples: dict[Path, Sample] = {}
    lone = []
    for image in file.images:
        path = _find(image.file_name, folders)
        if path is None:
            lone.append(Unpaired("name", f"{image.file_name!r} in {file.path.name}", f"image in {looked}"))
            continue
        if path in samples:
            raise DatasetError(
                f"{file.path} names the image {path} twice, as {samples[path].name!r} and {image.file_name!r};"
                " take one out"
            )
        samples[path] = Sample(image.file_name, path, _mask(file, image, class_ids))
    return Pairs(list(samples.values()), lone)


def _find(name: str, folders: list[Path]) -> Path | None:
    """Find an image; some exporters write Windows path separators, or the path on the exporting machine."""
    for candidate in (name, name.replace("\\", "/"), PureWindowsPath(name).name):
        for folder in folders:
            if _is_file(folder / candidate):
                return folder / candidate
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # the name is a signed URL, or the image itself as text
            return False
        raise


def _mask(file: CocoFile, image: CocoImage, class_ids: Mapping[int, int]) -> CocoMask:
    objects = tuple(
        CocoObject(found.id, class_ids[found.category_id], found.area) for found in file.annotations[image.id]
    )
    return CocoMask(file.path, image.file_name, image.height, image.width, objects)


COCO = Layout(
    "COCO",
    "annotations/instances_train.json instances_val.json train/ val/, or one JSON beside images/",
    _fits,
    _read,
)

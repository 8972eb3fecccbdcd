"""`images/` and `masks/`: with split lists beside them, with a subfolder for each split, or without splits."""

from pathlib import Path

from fcnseg.errors import DatasetError
from training.labels import LABELMAP_FILE, Labels
from training.layouts.listing import (
    Layout,
    Listing,
    Pairs,
    Unpaired,
    by_split,
    files_of,
    match_folders,
    match_list,
)

_NO_LISTS = {LABELMAP_FILE, "readme.txt", "license.txt"}


def _fits(root: Path) -> bool:
    return (root / "images").is_dir() and (root / "masks").is_dir()


def _read(root: Path, labels: Labels | None) -> Listing:
    label_map = None if labels is None else labels.label_map
    images, masks = root / "images", root / "masks"
    lists = sorted(path for path in root.glob("[!.]*.txt") if path.name.casefold() not in _NO_LISTS)
    if lists:
        found = files_of(images), files_of(masks)
        splits = {split: match_list(path, *found, labels) for split, path in by_split(lists).items()}
        return Listing.of_pairs(splits, label_map)
    image_folders, mask_folders = _folders(images), _folders(masks)
    if not image_folders and not mask_folders:
        return Listing.held_out(
            match_folders(images, masks, labels), label_map, f"write train.txt and val.txt in {root}"
        )
    loose = next((path for folder in (images, masks) for path in files_of(folder).by_stem.values()), None)
    if loose is not None:
        raise DatasetError(f"{loose} lies beside folders of splits; move it into one of them, or write split lists")
    splits = {
        split: match_folders(path, mask_folders[split], labels)
        if split in mask_folders
        else Pairs(unpaired=[Unpaired("image folder", path.name, f"namesake in {masks}")])
        for split, path in image_folders.items()
    }
    for split, path in mask_folders.items():
        splits.setdefault(split, Pairs(unpaired=[Unpaired("mask folder", path.name, f"namesake in {images}")]))
    return Listing.of_pairs(splits, label_map)


def _folders(folder: Path) -> dict[str, Path]:
    return by_split(path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))


FOLDERS = Layout(
    "images and masks",
    "images/ masks/, with or without train.txt val.txt (one image name a line) or a folder for each split in both",
    _fits,
    _read,
)

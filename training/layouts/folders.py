"""`images/` and `masks/`: with split lists beside them, with a folder for each split in them, or with neither."""

from pathlib import Path

from fcnseg.errors import DatasetError
from training.labels import LABELMAP_FILE, Labels
from training.layouts.listing import (
    Layout,
    Listing,
    files_of,
    held_out,
    match_folders,
    match_list,
    require_all,
    split_name,
)

_NO_LISTS = {LABELMAP_FILE, "readme.txt", "license.txt"}


def _fits(root: Path) -> bool:
    return (root / "images").is_dir() and (root / "masks").is_dir()


def _read(root: Path, labels: Labels | None) -> Listing:
    label_map = None if labels is None else labels.label_map
    images, masks = root / "images", root / "masks"
    lists = sorted(path for path in root.glob("*.txt") if path.name.casefold() not in _NO_LISTS)
    if lists:
        found = files_of(images), files_of(masks)
        return Listing({path.stem: list(match_list(path, *found, labels)) for path in lists}, label_map)
    image_folders, mask_folders = _folders(images), _folders(masks)
    if not image_folders and not mask_folders:
        splits, note = held_out(list(match_folders(images, masks, labels)), f"write train.txt and val.txt in {root}")
        return Listing(splits, label_map, note)
    require_all(image_folders.keys() - mask_folders.keys(), "image folder", image_folders, f"namesake in {masks}")
    require_all(mask_folders.keys() - image_folders.keys(), "mask folder", mask_folders, f"namesake in {images}")
    loose = next((path for folder in (images, masks) for path in files_of(folder).by_stem.values()), None)
    if loose is not None:
        raise DatasetError(f"{loose} lies beside folders of splits; move it into one of them, or write split lists")
    return Listing(
        {split: list(match_folders(path, mask_folders[split], labels)) for split, path in image_folders.items()},
        label_map,
    )


def _folders(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            first = found.setdefault(split_name(path.name), path)
            if first != path:
                raise DatasetError(f"{first} and {path.name} are both split {split_name(path.name)!r}; rename one")
    return found


FOLDERS = Layout(
    "images and masks",
    "images/ masks/, with or without train.txt val.txt (one image name a line) or a folder for each split in both",
    _fits,
    _read,
)

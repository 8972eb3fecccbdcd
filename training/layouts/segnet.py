"""SegNet's CamVid: for each split a folder of images, and a folder of masks with the suffix `annot` in its name."""

from pathlib import Path

from training.labels import Labels
from training.layouts.listing import Layout, Listing, match_folders


def _fits(root: Path) -> bool:
    return bool(_mask_folders(root))


def _read(root: Path, labels: Labels | None) -> Listing:
    splits = {_images_of(path).name: match_folders(_images_of(path), path, labels) for path in _mask_folders(root)}
    return Listing.of_pairs(splits, None if labels is None else labels.label_map)


def _mask_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("[!.]*annot") if path.is_dir() and _images_of(path).is_dir())


def _images_of(mask_folder: Path) -> Path:
    return mask_folder.with_name(mask_folder.name.removesuffix("annot"))


SEGNET = Layout("SegNet's CamVid", "train/ trainannot/ val/ valannot/", _fits, _read)

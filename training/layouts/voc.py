"""PASCAL VOC: `JPEGImages/`, `SegmentationClass/` and the lists in `ImageSets/Segmentation/`; CVAT exports it too.

Masks are PNGs of palette indices, or of the colours of `labelmap.txt`. Images without a mask are ignored: most of VOC's
have none.
"""

from pathlib import Path

from fcnseg.types import LabelMap
from training.labels import IGNORE_ID, Labels
from training.layouts.listing import Files, Layout, Listing, Pairs, by_split, files_of, match_list, unpaired
from training.mask_files import MaskFile
from training.samples import Sample

_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOID_COLOUR = (224, 224, 192)  # colour of the outlines of objects, in masks drawn in colours
_LISTS = Path("ImageSets", "Segmentation")


def _fits(root: Path) -> bool:
    return (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir()


def _read(root: Path, labels: Labels | None) -> Listing:
    labels = labels or _voc_labels()
    images, masks = files_of(root / "JPEGImages"), files_of(root / "SegmentationClass")
    lists = sorted((root / _LISTS).glob("[!.]*.txt"))
    splits = {split: match_list(path, images, masks, labels) for split, path in by_split(lists).items()}
    if splits and set(splits) != {"default"}:  # CVAT's name for images that are in no split
        return Listing.of_pairs(splits, labels.label_map)
    pairs = splits["default"] if splits else _match_masks(images, masks, labels)
    return Listing.held_out(pairs, labels.label_map, f"write train.txt and val.txt in {root / _LISTS}")


def _match_masks(images: Files, masks: Files, labels: Labels) -> Pairs:
    return Pairs(
        [
            Sample(images.by_stem[stem].name, images.by_stem[stem], MaskFile(path, labels))
            for stem, path in masks.by_stem.items()
            if stem in images.by_stem
        ],
        list(unpaired("mask", masks.by_stem, images.by_stem, f"image in {images.folder}")),
    )


def _voc_labels() -> Labels:
    label_map = LabelMap.from_names(_NAMES, ignore_id=IGNORE_ID)
    colours = [(info.colour, info.id) for info in label_map.classes]
    return Labels(label_map, (*colours, (_VOID_COLOUR, IGNORE_ID)), "the classes of PASCAL VOC")


VOC = Layout("PASCAL VOC", "JPEGImages/ SegmentationClass/ ImageSets/Segmentation/train.txt val.txt", _fits, _read)

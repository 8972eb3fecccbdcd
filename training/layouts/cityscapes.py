"""Cityscapes: `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`.

Of its 34 label ids, 19 are classes to train on, in the order and with the colours that its authors publish; the others
count as pixels without a label. Images of a split without `gtFine` are ignored.
"""

from pathlib import Path

from fcnseg.errors import DatasetError
from fcnseg.types import Colour, LabelMap
from training.labels import IGNORE_ID, Labels
from training.layouts.listing import Layout, Listing, Pairs, unpaired
from training.mask_files import MaskFile
from training.samples import Sample

_CLASSES: tuple[tuple[int, str, Colour], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
_IMAGE_END, _MASK_END = "_leftImg8bit.png", "_gtFine_labelIds.png"


def _fits(root: Path) -> bool:
    return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def _read(root: Path, labels: Labels | None) -> Listing:
    if labels is not None:
        raise DatasetError(f"{root / labels.source} does not go with Cityscapes, whose classes are known; take it out")
    train_ids = {label_id: i for i, (label_id, _, _) in enumerate(_CLASSES)}
    renumbered = bytes(train_ids.get(i, IGNORE_ID) for i in range(256))
    folders = sorted(path for path in (root / "gtFine").iterdir() if (root / "leftImg8bit" / path.name).is_dir())
    splits = {path.name: _match(root / "leftImg8bit" / path.name, path, renumbered) for path in folders}
    if not splits:
        raise DatasetError(f"gtFine/ and leftImg8bit/ of {root} have no split in common; unpack both for train and val")
    names, colours = [name for _, name, _ in _CLASSES], [colour for _, _, colour in _CLASSES]
    return Listing.of_pairs(splits, LabelMap.from_names(names, colours, IGNORE_ID))


def _match(image_folder: Path, mask_folder: Path, renumbered: bytes) -> Pairs:
    images, masks = _by_scene(image_folder, _IMAGE_END), _by_scene(mask_folder, _MASK_END)
    return Pairs(
        [
            Sample(image.name, image, MaskFile(masks[scene], renumbered=renumbered))
            for scene, image in images.items()
            if scene in masks
        ],
        [
            *unpaired("image", images, masks, f"*{_MASK_END} in {mask_folder}"),
            *unpaired("mask", masks, images, f"*{_IMAGE_END} in {image_folder}"),
        ],
    )


def _by_scene(folder: Path, end: str) -> dict[str, Path]:
    paths = sorted(folder.glob(f"[!.]*/[!.]*{end}"))
    return {f"{path.parent.name}/{path.name.removesuffix(end)}": path for path in paths}


CITYSCAPES = Layout(
    "Cityscapes",
    f"leftImg8bit/SPLIT/CITY/*{_IMAGE_END} gtFine/SPLIT/CITY/*{_MASK_END}",
    _fits,
    _read,
)

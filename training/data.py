"""A folder of images and masks: found, checked before anything is trained or evaluated on it, and fingerprinted.

Two layouts, told apart by the folders that are there:

    SegNet's CamVid                       split lists
    train/ trainannot/                    images/ masks/
    val/ valannot/                        train.txt val.txt

Image and mask share their name up to the suffix. A split list has one image name a line. `classes.json` beside the
folders says what the ids mean (see `training.labels`); without it the classes are `class 0` to `class K - 1`, K - 1
being the largest id in the training masks, and 255 marks pixels without a label.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fcnseg import images, masks
from fcnseg.errors import DatasetError, ImageError, MaskError
from fcnseg.types import LabelMap, closest
from training.labels import CLASSES_FILE, IGNORE_ID, read_label_map

_SHOWN = 5
_THREADS = 8
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Sample:
    """One image and its mask.

    Attributes:
        name: The image's name within its split.
        image: The image file.
        mask: The mask file.
    """

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Dataset:
    """A data folder whose files have been matched, not yet opened.

    Attributes:
        root: The folder.
        label_map: What the ids in the masks mean.
        splits: Samples by split, each non-empty and in the order of the list or of the names.
    """

    root: Path
    label_map: LabelMap
    splits: dict[str, tuple[Sample, ...]]

    def split(self, name: str) -> tuple[Sample, ...]:
        """Return the samples of a split.

        Raises:
            DatasetError: There is no such split; the message names those there are.
        """
        if name not in self.splits:
            raise DatasetError(f"{self.root} has no split {name!r}; {closest(name, list(self.splits))}")
        return self.splits[name]


@dataclass(frozen=True)
class Contents:
    """What a check found in the masks of some samples.

    Attributes:
        images: Number of images.
        class_pixels: Pixels of each class, in the order of the ids.
        ignored_pixels: Pixels without a label.
        longer_side: Median over the images of the longer of height and width.
    """

    images: int
    class_pixels: tuple[int, ...]
    ignored_pixels: int
    longer_side: int


def open_dataset(root: Path) -> Dataset:
    """Find the splits and classes of a data folder.

    Raises:
        DatasetError: The folder has neither layout, an image or mask is missing, a split is empty, or `classes.json`
            is not valid.
    """
    if not root.is_dir():
        raise DatasetError(f"data folder {root} {'is a file' if root.exists() else 'does not exist'}; name a folder")
    annotated = sorted(path for path in root.glob("*annot") if path.is_dir() and _images_of(path).is_dir())
    lists = sorted(root.glob("*.txt")) if (root / "images").is_dir() and (root / "masks").is_dir() else []
    if annotated:
        splits = {_images_of(path).name: tuple(_match_folders(_images_of(path), path)) for path in annotated}
    elif lists:
        splits = {path.stem: tuple(_match_list(root, path)) for path in lists}
    else:
        raise DatasetError(
            f"{root} holds neither train/ trainannot/ val/ valannot/ nor images/ masks/ train.txt val.txt;"
            " bring the data into one of these layouts"
        )
    for name, samples in splits.items():
        if not samples:
            raise DatasetError(f"split {name!r} of {root} is empty; add images or remove the split")
    path = root / CLASSES_FILE
    return Dataset(root, read_label_map(path) if path.is_file() else _count_classes(root, splits), splits)


def check_samples(samples: Sequence[Sample], label_map: LabelMap) -> Contents:
    """Open every image and mask and check that they fit each other and the classes.

    Raises:
        DatasetError: A file cannot be read, a mask has another size than its image, or holds ids that are neither a
            class nor the ignore id. The message names the first such file, and how many more there are.
    """
    counts = np.zeros(256, np.int64)
    sides: list[int] = []
    faults: list[str] = []
    for found in _in_threads(lambda sample: _check(sample, label_map), samples):
        if isinstance(found, str):
            faults.append(found)
        else:
            counts += found[0]
            sides.append(found[1])
    if faults:
        more = f" ({len(faults) - 1} more of {len(samples)} samples are faulty)" if len(faults) > 1 else ""
        raise DatasetError(faults[0] + more)
    return Contents(
        images=len(samples),
        class_pixels=tuple(int(n) for n in counts[: len(label_map)]),
        ignored_pixels=0 if label_map.ignore_id is None else int(counts[label_map.ignore_id]),
        longer_side=sorted(sides)[len(sides) // 2],
    )


def read_sample(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read an image, (H, W, 3) uint8 RGB, through the runtime's own decoder, and its mask, (H, W) uint8 ids.

    Raises:
        DatasetError: A file cannot be read, the mask is no 8-bit map of ids, or the sizes differ.
    """
    try:
        image = images.read(sample.image)
    except ImageError as error:
        raise DatasetError(f"{error}, or take it out of the data") from error
    mask = _read_mask(sample.mask)
    if mask.shape != image.shape[:2]:
        raise DatasetError(
            f"mask {sample.mask} is {mask.shape[1]}x{mask.shape[0]} but its image {sample.image.name} is"
            f" {image.shape[1]}x{image.shape[0]}; give both one size"
        )
    return image, mask


def fingerprint(dataset: Dataset, splits: Iterable[str]) -> str:
    """SHA-256 (hex) of the label map and of names and contents of the images and masks of some splits.

    The order of the samples does not count, nor does where the folder lies.
    """
    total = hashlib.sha256(dataset.label_map.hash.encode())
    for split in sorted(splits):
        samples = sorted(dataset.split(split), key=lambda sample: sample.name)
        for line in _in_threads(_fingerprint_line, samples):
            total.update(f"{split}\n".encode() + line)
    return total.hexdigest()


def _images_of(annotations: Path) -> Path:
    return annotations.with_name(annotations.name.removesuffix("annot"))


def _match_folders(image_folder: Path, mask_folder: Path) -> Iterator[Sample]:
    found_images, found_masks = _files_by_stem(image_folder), _files_by_stem(mask_folder)
    _require_all(found_images.keys() - found_masks.keys(), "image", found_images, f"mask in {mask_folder}")
    _require_all(found_masks.keys() - found_images.keys(), "mask", found_masks, f"image in {image_folder}")
    for stem, image in found_images.items():
        yield Sample(image.name, image, found_masks[stem])


def _match_list(root: Path, path: Path) -> Iterator[Sample]:
    found_images, found_masks = _files_by_stem(root / "images"), _files_by_stem(root / "masks")
    seen: dict[str, str] = {}
    try:
        names = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"split list {path} is not UTF-8 text ({error.reason}); write one image name a line"
        ) from error
    for name in filter(None, names):
        stem = name if name in found_images else Path(name).stem
        for kind, found in (("image", found_images), ("mask", found_masks)):
            if stem not in found:
                raise DatasetError(
                    f"{path.name} lists {name!r}, but {root / f'{kind}s'} has no {kind} of that name; add it, or take"
                    " the line out"
                )
        if stem in seen:
            raise DatasetError(f"{path.name} lists {seen[stem]!r} and again {name!r}; take one line out")
        seen[stem] = name
        yield Sample(found_images[stem].name, found_images[stem], found_masks[stem])


def _files_by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise DatasetError(f"{path} and {found[path.stem].name} share one name; images and masks match by it")
        found[path.stem] = path
    return found


def _require_all(lacking: Iterable[str], kind: str, found: dict[str, Path], other: str) -> None:
    names = [found[stem].name for stem in sorted(lacking)]
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise DatasetError(f"{kind} {names[0]} has no {other}{more}; add it, or take the {kind} out")


def _count_classes(root: Path, splits: dict[str, tuple[Sample, ...]]) -> LabelMap:
    if "train" not in splits:
        raise DatasetError(f"{root} has neither {CLASSES_FILE} nor a train split whose masks would tell the classes")
    counts = np.zeros(256, np.int64)
    for count in _in_threads(lambda sample: _count(_read_mask(sample.mask)), splits["train"]):
        counts += count
    present = [int(i) for i in np.flatnonzero(counts) if i != IGNORE_ID]
    if not present or max(present) == 0:
        binary = " (0/255 binary masks? write 1 for 255)" if counts[IGNORE_ID] else ""
        raise DatasetError(
            f"the training masks of {root} hold no class but 0{binary}; write ids 0 to K - 1, or name the classes in"
            f" {CLASSES_FILE}"
        )
    return LabelMap.from_names([f"class {i}" for i in range(max(present) + 1)], ignore_id=IGNORE_ID)


def _check(sample: Sample, label_map: LabelMap) -> tuple[NDArray[np.int64], int] | str:
    """Return the pixels of each id and the longer side, or what is wrong with the sample."""
    try:
        mask = read_sample(sample)[1]
    except DatasetError as error:
        return str(error)
    counts = _count(mask)
    unknown = [int(i) for i in np.flatnonzero(counts) if i >= len(label_map) and i != label_map.ignore_id]
    return _unknown_ids(sample, counts, unknown, label_map) if unknown else (counts, max(mask.shape))


def _unknown_ids(sample: Sample, counts: NDArray[np.int64], unknown: list[int], label_map: LabelMap) -> str:
    shown = ", ".join(str(i) for i in unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
    binary = set(np.flatnonzero(counts)) <= {0, 255}
    hint = " (0/255 binary mask? write 1 for 255)" if binary else ""
    ignore = "" if label_map.ignore_id is None else f" and {label_map.ignore_id} for no label"
    return (
        f"mask {sample.mask} has ids {shown} on {int(counts[unknown].sum())} pixels where the classes are 0 to"
        f" {len(label_map) - 1}{ignore}{hint}; correct the mask or {CLASSES_FILE}"
    )


def _read_mask(path: Path) -> NDArray[np.uint8]:
    try:
        mask = masks.read_ids(path)
    except MaskError as error:
        hint = " (a mask drawn in colours: convert each colour to its class's id)" if _is_coloured(path) else ""
        raise DatasetError(f"{error}{hint}") from error
    if mask.dtype != np.uint8 and mask.max() > np.iinfo(np.uint8).max:
        raise DatasetError(f"mask {path} holds the id {mask.max()}; training takes ids of 0 to 255")
    return mask.astype(np.uint8, copy=False)


def _is_coloured(path: Path) -> bool:
    try:
        with Image.open(path) as file:
            return file.mode in {"RGB", "RGBA"}
    except (OSError, UnidentifiedImageError):
        return False


def _count(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(mask.reshape(-1), minlength=256)


def _fingerprint_line(sample: Sample) -> bytes:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (sample.image, sample.mask)]
    return "\n".join([sample.image.name, sample.mask.name, *digests, ""]).encode()


def _in_threads(function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """Map in threads, results in the order of the items: decoding and hashing release the interpreter's lock."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(function, items)

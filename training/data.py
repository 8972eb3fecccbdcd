"""A folder of images and masks: found, checked before anything is trained or evaluated on it, and fingerprinted.

The layouts that are read are those of `training.layouts`; where one leaves it open what the ids mean, `classes.json`
beside the folders says it (see `training.labels`). Without it the classes are `class 0` to `class K - 1`, K - 1 being
the largest id in the training masks, and 255 marks pixels without a label.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fcnseg import images
from fcnseg.errors import DatasetError, ImageError
from fcnseg.types import LabelMap, closest
from training.labels import CLASSES_FILE, IGNORE_ID, find_labels
from training.layouts import find_layout
from training.samples import Sample

__all__ = ["Contents", "Dataset", "Sample", "check_samples", "fingerprint", "open_dataset", "read_sample"]

_SHOWN = 5
_THREADS = 8
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Dataset:
    """A data folder whose files have been matched, not yet opened.

    Attributes:
        root: The folder.
        label_map: What the ids in the masks mean.
        splits: Samples by split, each non-empty and in the order of the list or of the names.
        note: What the user should know of how the splits came about; None where the folder says them.
    """

    root: Path
    label_map: LabelMap
    splits: dict[str, tuple[Sample, ...]]
    note: str | None = None

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
        DatasetError: The folder has none of the layouts or several, an image or mask is missing, a split is empty, or a
            file that names splits, classes or annotations is not valid.
    """
    if not root.is_dir():
        raise DatasetError(f"data folder {root} {'is a file' if root.exists() else 'does not exist'}; name a folder")
    listing = find_layout(root).read(root, find_labels(root))
    splits = {name: tuple(samples) for name, samples in listing.splits.items()}
    for name, samples in splits.items():
        if not samples:
            raise DatasetError(f"split {name!r} of {root} is empty; add images or remove the split")
    return Dataset(root, listing.label_map or _count_classes(root, splits), splits, listing.note)


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
        DatasetError: A file cannot be read, the mask's pixels are no ids or colours of classes, or the sizes differ.
    """
    try:
        image = images.read(sample.image)
    except ImageError as error:
        raise DatasetError(f"{error}, or take it out of the data") from error
    mask = sample.mask.read()
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


def _count_classes(root: Path, splits: dict[str, tuple[Sample, ...]]) -> LabelMap:
    if "train" not in splits:
        raise DatasetError(f"{root} has neither {CLASSES_FILE} nor a train split whose masks would tell the classes")
    counts = np.zeros(256, np.int64)
    for count in _in_threads(lambda sample: _count(sample.mask.read()), splits["train"]):
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


def _count(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(mask.reshape(-1), minlength=256)


def _fingerprint_line(sample: Sample) -> bytes:
    digests = [hashlib.sha256(data).hexdigest() for data in (sample.image.read_bytes(), sample.mask.content())]
    return "\n".join([sample.image.name, sample.mask.name, *digests, ""]).encode()


def _in_threads(function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """Map in threads, results in the order of the items: decoding and hashing release the interpreter's lock."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(function, items)

"""Statistics of a data set's files, found by opening every one: sizes, pixels of each class, and faults."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcnseg.errors import DatasetError
from fcnseg.types import LUMA, LabelMap, count_ids, voc_colour
from fcnseg.words import first_of
from training.labels import CLASSES_FILE
from training.samples import Sample, read_image, size_fault

MASK_IDS = 256
"""Number of values that a pixel of an 8-bit mask may have."""
_SHOWN = 5
_THREADS = 8
_BINARY = {0, 255}
_VOC_OUTLINE = (224, 224, 192)  # colour of the outlines of PASCAL VOC's objects, which have no label
_FLAT = 2.0  # grey levels: with a smaller range, an image has too little structure for a perceptual hash
_In = TypeVar("_In")
_Out = TypeVar("_Out")
FaultKind: TypeAlias = Literal["unreadable image", "unreadable mask", "sizes differ", "unknown ids", "0/255 binary"]


@dataclass(frozen=True)
class Fault:
    """Something wrong with one sample.

    Attributes:
        kind: The kind of fault.
        message: What is wrong with which file, and the remedy, in one line.
    """

    kind: FaultKind
    message: str


@dataclass(frozen=True)
class Contents:
    """Statistics of the files of some samples, without the faulty ones.

    Attributes:
        images: Number of images.
        class_pixels: Pixels of each class, in the order of the ids.
        class_extent: For each class, the labelled pixels of all images in which it occurs.
        ignored_pixels: Pixels without a label.
        size: (median height, median width) of the images.
        one_size: Whether all images have that size.
        hashes: 64-bit perceptual hash of each image, in the order of the samples; None for flat or faulty ones.
        faults: The faults, in the order of the samples.
    """

    images: int
    class_pixels: tuple[int, ...]
    class_extent: tuple[int, ...]
    ignored_pixels: int
    size: tuple[int, int]
    one_size: bool
    hashes: tuple[int | None, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class _Found:
    """Statistics of one sample: pixel counts of the 256 ids, (height, width), and the image's hash."""

    counts: NDArray[np.int64]
    size: tuple[int, ...]
    hash: int | None


def look_into(samples: Sequence[Sample], label_map: LabelMap) -> Contents:
    """Open every image and mask, gather statistics, and find those that do not fit each other or the classes."""
    looks = list(in_threads(lambda sample: _look(sample, label_map), samples))
    found = [look for look in looks if isinstance(look, _Found)]
    faults = [look for look in looks if isinstance(look, Fault)]
    counts = np.stack([look.counts for look in found]) if found else np.zeros((0, MASK_IDS), np.int64)
    if _are_binary(counts, label_map):
        faults += [
            Fault(
                "0/255 binary",
                f"mask {sample.mask} holds 0 and 255 alone, and so do all others, but 255 counts as no label; write 1"
                f" for 255, or, where it does mean no label, add masks with the class {label_map.classes[1].name}",
            )
            for sample, look in zip(samples, looks, strict=True)
            if isinstance(look, _Found) and look.counts[255]
        ]
    classes = counts[:, : len(label_map)]
    sides = [sorted(side)[len(found) // 2] for side in zip(*(look.size for look in found), strict=True)] or [0, 0]
    return Contents(
        images=len(found),
        class_pixels=tuple(int(n) for n in classes.sum(axis=0)),
        class_extent=tuple(int(n) for n in ((classes > 0) * classes.sum(axis=1, keepdims=True)).sum(axis=0)),
        ignored_pixels=0 if label_map.ignore_id is None else int(counts[:, label_map.ignore_id].sum()),
        size=(sides[0], sides[1]),
        one_size=len({look.size for look in found}) == 1,
        hashes=tuple(look.hash if isinstance(look, _Found) else None for look in looks),
        faults=tuple(faults),
    )


def check_samples(samples: Sequence[Sample], label_map: LabelMap) -> Contents:
    """Open every image and mask and check that they fit each other and the classes.

    Raises:
        DatasetError: A file cannot be read, a mask has another size than its image, or a mask has ids that are neither
            a class nor the ignore id. The message names the first such file, and how many more there are.
    """
    contents = look_into(samples, label_map)
    require_sound(contents.faults, len(samples))
    return contents


def tell_no_label(split: str, ignore_id: int | None) -> str:
    """Return the message that no pixel of a split has a class; the caller adds the remedy."""
    return f"no pixel of the {split} masks has a class: all have id {ignore_id}, which counts as no label"


def require_sound(faults: Sequence[Fault], samples: int) -> None:
    """Refuse samples with faults.

    Raises:
        DatasetError: There are faults; the message is that of the first one, with the number of the others.
    """
    if faults:
        more = f" ({len(faults) - 1} more of {samples} samples are faulty)" if len(faults) > 1 else ""
        raise DatasetError(faults[0].message + more)


def in_threads(function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """Map in threads, with results in the order of the items; decoding and hashing release the GIL."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(function, items)


def _look(sample: Sample, label_map: LabelMap) -> _Found | Fault:
    try:
        image = read_image(sample)
    except DatasetError as error:
        return Fault("unreadable image", str(error))
    try:
        mask = sample.mask.read()
    except DatasetError as error:
        return Fault("unreadable mask", str(error))
    if (fault := size_fault(sample, image, mask)) is not None:
        return Fault("sizes differ", fault)
    counts = count_ids(mask, MASK_IDS)
    unknown = [int(i) for i in np.flatnonzero(counts) if i >= len(label_map) and i != label_map.ignore_id]
    if unknown:
        return _unknown_ids(sample, counts, unknown, label_map)
    return _Found(counts, mask.shape, _perceptual_hash(image))


def _unknown_ids(sample: Sample, counts: NDArray[np.int64], unknown: list[int], label_map: LabelMap) -> Fault:
    binary = set(np.flatnonzero(counts).tolist()) <= _BINARY
    hint = ""
    if binary:
        hint = " (0/255 binary mask? write 1 for 255)"
    elif set(np.flatnonzero(counts).tolist()) <= _grey_colours(label_map):
        hint = " (these are its classes' colours made grey; save palette indices instead)"
    ignore = "" if label_map.ignore_id is None else f" and {label_map.ignore_id} for no label"
    return Fault(
        "0/255 binary" if binary else "unknown ids",
        f"mask {sample.mask} has ids {first_of(unknown, _SHOWN)} on {int(counts[unknown].sum())} pixels where the"
        f" classes are 0 to {len(label_map) - 1}{ignore}{hint}; correct the mask or {CLASSES_FILE}",
    )


def _grey_colours(label_map: LabelMap) -> set[int]:
    """Return the grey values of the classes' colours and of PASCAL VOC's, each rounded both up and down."""
    voc_colours = [*(voc_colour(i) for i in range(len(label_map))), _VOC_OUTLINE]
    colours = [*(info.colour for info in label_map.classes), *voc_colours]
    greys = [sum(part * c for part, c in zip(LUMA, colour, strict=True)) for colour in colours]
    return {math.floor(grey) for grey in greys} | {math.ceil(grey) for grey in greys} | {0, 255}


def _are_binary(counts: NDArray[np.int64], label_map: LabelMap) -> bool:
    """Tell whether masks of two classes use 255 for the second class: the only ids are 0 and 255."""
    held = set(np.flatnonzero(counts.sum(axis=0)).tolist())
    return len(label_map) == 2 and label_map.ignore_id == 255 and held == _BINARY


def _perceptual_hash(image: NDArray[np.uint8]) -> int | None:
    """Return 64 bits that change little with size, compression and brightness; None for an image without structure."""
    grey = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    if float(np.std(np.asarray(grey))) < _FLAT:
        return None
    return int(str(imagehash.phash(grey)), 16)

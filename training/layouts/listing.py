"""Common parts of the layouts: the types, matching images to masks by name, and making splits if none are given."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from fcnseg.errors import DatasetError
from fcnseg.types import LabelMap
from training.labels import Labels
from training.mask_files import MaskFile
from training.samples import Sample

_HELD_OUT = 0.1
_ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_YEAR = re.compile(r"(?<=[a-z])_?(19|20)\d\d$")


@dataclass(frozen=True)
class Unpaired:
    """An item without a counterpart: an image without a mask, a mask without an image, or a listed name without a file.

    Attributes:
        kind: The kind of item: `image`, `mask`, `name`, `image folder` or `mask folder`.
        name: The item's file name, or the name in the list.
        lacks: The missing counterpart, such as `mask in DATA/masks`.
        split: The item's split; None if there are no splits.
    """

    kind: str
    name: str
    lacks: str
    split: str | None = None

    @property
    def remedy(self) -> str:
        """The remedy, in a few words."""
        return f"add it, or take the {self.kind} out"

    def __str__(self) -> str:
        return f"{self.kind} {self.name} has no {self.lacks}"


@dataclass
class Pairs:
    """Images paired with their masks, and what could not be paired."""

    samples: list[Sample] = field(default_factory=list)
    unpaired: list[Unpaired] = field(default_factory=list)


@dataclass(frozen=True)
class Listing:
    """The samples of a data folder; only lists and annotation files have been opened.

    Attributes:
        splits: Samples by split.
        label_map: The classes that the layout or the data folder declares; None if only the masks contain them.
        note: A remark for the user on how the splits were made; None if the folder defines them.
        unpaired: Items without a counterpart, in any split.
    """

    splits: Mapping[str, Sequence[Sample]]
    label_map: LabelMap | None
    note: str | None = None
    unpaired: tuple[Unpaired, ...] = ()

    @classmethod
    def of_pairs(cls, splits: Mapping[str, Pairs], label_map: LabelMap | None) -> "Listing":
        """Return the listing of splits whose images and masks have been paired."""
        unpaired = tuple(replace(lone, split=name) for name, pairs in splits.items() for lone in pairs.unpaired)
        return cls({name: pairs.samples for name, pairs in splits.items()}, label_map, unpaired=unpaired)

    @classmethod
    def held_out(cls, pairs: Pairs, label_map: LabelMap | None, remedy: str) -> "Listing":
        """Return the listing of samples without splits, with about a tenth held out (see `held_out`)."""
        if pairs.unpaired and len(pairs.samples) < 2:  # report the unpaired items rather than the number of samples
            return cls({"train": pairs.samples}, label_map, None, tuple(pairs.unpaired))
        splits, note = held_out(pairs.samples, remedy)
        return cls(splits, label_map, note, tuple(pairs.unpaired))


@dataclass(frozen=True)
class Layout:
    """One way to lay out a data set.

    Attributes:
        name: The layout's name.
        shape: The layout's files and folders, for messages.
        fits: Tells whether a folder has this layout, by the names in it.
        read: Lists a folder of this layout, given the labels of `classes.json` or `labelmap.txt`.
    """

    name: str
    shape: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, Labels | None], Listing]


@dataclass(frozen=True)
class Files:
    """The files of a folder.

    Attributes:
        folder: The folder.
        by_stem: The files by their names without suffix, in the order of the names.
    """

    folder: Path
    by_stem: Mapping[str, Path]


def files_of(folder: Path) -> Files:
    """List the files of a folder.

    Raises:
        DatasetError: Two files differ only in their suffix.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
    found: dict[str, Path] = {}
    for path in (folder / name for name in names):
        if path.stem in found:
            raise DatasetError(f"{path} and {found[path.stem].name} share one name; images and masks match by it")
        found[path.stem] = path
    return Files(folder, found)


def match_folders(image_folder: Path, mask_folder: Path, labels: Labels | None) -> Pairs:
    """Pair the images of a folder with the masks of another, by their names without suffix.

    Raises:
        DatasetError: Two files of a folder differ only in their suffix, or there is a folder among the images.
    """
    with os.scandir(image_folder) as entries:
        below = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    if below:
        raise DatasetError(
            f"{image_folder / below[0]} is a folder, and images are read from {image_folder} itself; move its files"
            " there, or take it out"
        )
    images, masks = files_of(image_folder).by_stem, files_of(mask_folder).by_stem
    samples = [
        Sample(image.name, image, MaskFile(masks[stem], labels)) for stem, image in images.items() if stem in masks
    ]
    of_that_name, as_they_are = "", ""
    if images and masks and not samples:
        of_that_name, as_they_are = " of that name", f", where the first is {next(iter(masks.values())).name}"
    return Pairs(
        samples,
        [
            *unpaired("image", images, masks, f"mask{of_that_name} in {mask_folder}{as_they_are}"),
            *unpaired("mask", masks, images, f"image in {image_folder}"),
        ],
    )


def match_list(path: Path, images: Files, masks: Files, labels: Labels | None) -> Pairs:
    """Pair the images that a split list names, one per line, with their masks.

    Args:
        path: The list.
        images: The images that may be listed.
        masks: Their masks, and perhaps others.
        labels: The classes' colours, for masks drawn in them.

    Raises:
        DatasetError: The list is not text, or a line is repeated.
    """
    pairs = Pairs()
    seen: dict[str, str] = {}
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"split list {path} is not UTF-8 text ({error.reason}); write one image name a line"
        ) from error
    for name in filter(None, names):
        stem = name if name in images.by_stem else Path(name).stem
        if stem in seen:
            raise DatasetError(f"{path.name} lists {seen[stem]!r} and again {name!r}; take one line out")
        seen[stem] = name
        lacks = [
            f"{kind} of that name in {found.folder}"
            for kind, found in (("image", images), ("mask", masks))
            if stem not in found.by_stem
        ]
        if lacks:
            pairs.unpaired.append(Unpaired("name", f"{name!r} in {path.name}", lacks[0]))
        else:
            pairs.samples.append(
                Sample(images.by_stem[stem].name, images.by_stem[stem], MaskFile(masks.by_stem[stem], labels))
            )
    return pairs


def unpaired(kind: str, found: Mapping[str, Path], others: Iterable[str], lacks: str) -> Iterator[Unpaired]:
    """Yield the files without a counterpart.

    Args:
        kind: The kind of the files.
        found: The files by the keys that they are matched by.
        others: The keys of the possible counterparts.
        lacks: The description of the missing counterpart.
    """
    for key in sorted(found.keys() - set(others)):
        yield Unpaired(kind, found[key].name, lacks)


def split_name(name: str) -> str:
    """Normalise the name of a split's folder or file: `Training`, `train2017` and `train` mean the same split."""
    plain = _YEAR.sub("", name.casefold())
    known = _ALIASES.get(plain, plain)
    return known if known in {"train", "val", "test"} else name


def by_split(paths: Iterable[Path]) -> dict[str, Path]:
    """Return folders or lists by their normalised split names.

    Raises:
        DatasetError: Two of them are the same split.
    """
    found: dict[str, Path] = {}
    for path in paths:
        split = split_name(path.name if path.is_dir() else path.stem)
        first = found.setdefault(split, path)
        if first != path:
            raise DatasetError(f"{first} and {path.name} are both split {split!r}; rename one")
    return found


def held_out(samples: Sequence[Sample], remedy: str) -> tuple[dict[str, Sequence[Sample]], str]:
    """Hold out about a tenth of the samples for validation, chosen by a hash of their names.

    A sample's split depends only on its name, so that samples added later do not move others. If no hash falls below
    the threshold for validation, the sample with the smallest hash is taken.

    Args:
        samples: All samples.
        remedy: What a user who wants other splits has to write.

    Returns:
        The splits, and a note in one line on how they were made.

    Raises:
        DatasetError: There are fewer than two samples.
    """
    if len(samples) < 2:
        raise DatasetError(f"{len(samples)} images cannot be split into train and val; add images, or {remedy}")
    places = [_place(sample.name) for sample in samples]
    limit = max(_HELD_OUT, min(places))
    val = [sample for sample, place in zip(samples, places, strict=True) if place <= limit]
    train = [sample for sample, place in zip(samples, places, strict=True) if place > limit]
    if not train:
        raise DatasetError(f"the hashes of the names put all {len(samples)} images into val; add images, or {remedy}")
    note = f"no splits are given: {len(train)} images train and {len(val)} val by a hash of their names; {remedy}"
    return {"train": train, "val": val}, f"{note} to choose them"


def _place(name: str) -> float:
    """Hash a name without its suffix to a number in [0, 1), the same on every machine."""
    digest = hashlib.sha256(str(PurePosixPath(name).with_suffix("")).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

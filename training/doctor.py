"""The dataset doctor: finds everything that is or may be wrong with a data set, before time is spent on a run.

Errors are faults that training refuses or would learn nonsense from; warnings are those that would silently distort its
metrics.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import DatasetError
from training.contents import Contents, Fault, look_into, tell_no_label
from training.data import Dataset, open_dataset

Severity: TypeAlias = Literal["error", "warning"]
NEAR_BITS = 4
"""Images whose 64-bit perceptual hashes differ in at most this many bits are near duplicates."""
_COMPARED = ("train", "val")
_MOSTLY = 0.5
_NO_LABEL = "no label at all"


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
        severity: Whether it must be corrected (an error), or should only be known (a warning).
        kind: The kind, in a few words.
        split: The split concerned; None for the whole folder.
        messages: One line for each case, with the file's name and the remedy.
    """

    severity: Severity
    kind: str
    split: str | None
    messages: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """The result of an examination.

    Attributes:
        dataset: What could be opened.
        contents: The contents of its files, by split.
        findings: The problems, errors first.
    """

    dataset: Dataset
    contents: Mapping[str, Contents]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that must be corrected."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults of single samples."""
        return tuple(fault for contents in self.contents.values() for fault in contents.faults)


def diagnose(root: Path) -> Diagnosis:
    """Open a data folder and examine all its splits.

    Raises:
        DatasetError: The folder cannot be opened at all.
    """
    dataset = open_dataset(root, lenient=True)
    return examine(dataset, tuple(dataset.splits))


def examine(dataset: Dataset, splits: Sequence[str]) -> Diagnosis:
    """Examine some splits of a data set: every image and mask is opened.

    Raises:
        DatasetError: There is no such split.
    """
    contents = {split: look_into(dataset.split(split), dataset.label_map) for split in splits}
    if dataset.label_map.ignore_id == 255 and any(sum(found.class_pixels[1:]) for found in contents.values()):
        # If some split has the other class, 255 in a split that has only background means no label.
        contents = {
            split: replace(found, faults=tuple(fault for fault in found.faults if fault.kind != "0/255 binary"))
            for split, found in contents.items()
        }
    findings = [
        *_splits(dataset),
        *_unpaired(dataset),
        *_faults(contents),
        *_classes(dataset, contents),
        *_duplicates(dataset, contents),
    ]
    findings.sort(key=lambda finding: finding.severity)
    return Diagnosis(dataset, contents, tuple(findings))


def require_labels(diagnosis: Diagnosis) -> None:
    """Refuse to train on, or to validate with, a split without any labelled pixel.

    Raises:
        DatasetError: A split that training needs has no labelled pixel.
    """
    for finding in diagnosis.errors:
        if finding.kind == _NO_LABEL:
            raise DatasetError(finding.messages[0])


def near_pairs(first: Sequence[int | None], second: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Yield the (index in `first`, index in `second`) of each pair of hashes that differ in NEAR_BITS bits or fewer."""
    known = [place for place, value in enumerate(second) if value is not None]
    hashes = np.array([second[place] for place in known], np.uint64)
    for i, value in enumerate(first):
        if value is None:
            continue
        distance: NDArray[np.uint8] = np.bitwise_count(hashes ^ np.uint64(value))
        for j in np.flatnonzero(distance <= NEAR_BITS):
            yield i, known[int(j)]


def _splits(dataset: Dataset) -> Iterator[Finding]:
    missing = [split for split in _COMPARED if split not in dataset.splits]
    messages = tuple(
        f"there is no split {split}, and 'fcnseg train' needs {' and '.join(_COMPARED)}; give images to it"
        for split in missing
    )
    if messages:
        yield Finding("warning", "split missing", None, messages)


def _unpaired(dataset: Dataset) -> Iterator[Finding]:
    by_kind = defaultdict(list)
    for lone in dataset.unpaired:
        by_kind[lone.kind].append(f"{lone}; {lone.remedy}")
    for kind, messages in by_kind.items():
        yield Finding("error", f"{kind} without its other half", None, tuple(messages))


def _faults(contents: Mapping[str, Contents]) -> Iterator[Finding]:
    for split, found in contents.items():
        by_kind = defaultdict(list)
        for fault in found.faults:
            by_kind[fault.kind].append(fault.message)
        for kind, messages in by_kind.items():
            yield Finding("error", kind, split, tuple(messages))


def _classes(dataset: Dataset, contents: Mapping[str, Contents]) -> Iterator[Finding]:
    for split, found in contents.items():
        if not found.images:
            continue
        labelled = sum(found.class_pixels)
        if not labelled and split in _COMPARED:
            message = f"{tell_no_label(split, dataset.label_map.ignore_id)}; give them classes"
            yield Finding("error", _NO_LABEL, split, (message,))
            continue
        absent = [
            info.name for info, pixels in zip(dataset.label_map.classes, found.class_pixels, strict=True) if pixels == 0
        ]
        if absent:
            cannot = "learned" if split == "train" else "measured"
            messages = tuple(
                f"no {split} mask has the class {name}, which cannot be {cannot}: add images of it, or drop the class"
                for name in absent
            )
            yield Finding("warning", "class never seen", split, messages)
        if found.ignored_pixels > _MOSTLY * (labelled + found.ignored_pixels):
            share = found.ignored_pixels / (labelled + found.ignored_pixels)
            message = (
                f"{share:.0%} of the {split} pixels have id {dataset.label_map.ignore_id}, which counts as no label;"
                " give them classes, if they have some"
            )
            yield Finding("warning", "mostly no label", split, (message,))


def _duplicates(dataset: Dataset, contents: Mapping[str, Contents]) -> Iterator[Finding]:
    """Compare the images of each split with those of all later ones; lists such as VOC's trainval repeat others.

    Each image is reported only once: all images of a camera that does not move are near duplicates of each other.
    """
    splits = [split for split in _COMPARED if split in contents] + (["test"] if "test" in contents else [])
    for i, first in enumerate(splits):
        for second in splits[i + 1 :]:
            here, there = dataset.split(second), dataset.split(first)
            messages = []
            for a, pairs in groupby(near_pairs(contents[second].hashes, contents[first].hashes), key=itemgetter(0)):
                (_, b), *others = pairs
                more = f" and {len(others)} more" if others else ""
                messages.append(
                    f"{second} image {here[a].name} is nearly {first} image {there[b].name}{more}; keep a scene in one"
                    f" split, or {second} measures what was learned by heart"
                )
            if messages:
                yield Finding("warning", "duplicates across splits", second, tuple(messages))

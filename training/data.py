"""Find, match and fingerprint the images and masks of a data folder.

`training.layouts` reads the layouts. If a layout does not define what the ids mean, `classes.json` beside the folders
does (see `training.labels`). Without that file the classes are `class 0` to `class K - 1`, K - 1 being the largest id
in the training masks, and 255 marks pixels without a label.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import DatasetError
from fcnseg.types import LabelMap, count_ids
from fcnseg.words import closest
from training.contents import MASK_IDS, in_threads
from training.labels import CLASSES_FILE, IGNORE_ID, find_labels
from training.layouts import find_layout
from training.layouts.listing import Unpaired
from training.samples import Sample


@dataclass(frozen=True)
class Dataset:
    """A data folder whose files have been matched but not opened yet.

    Attributes:
        root: The folder.
        label_map: What the ids in the masks mean.
        splits: Samples by split, each non-empty and in the order of the split list or of the names.
        note: A remark for the user on how the splits were made; None if the folder defines them.
        unpaired: Images without a mask and masks without an image that were left out.
    """

    root: Path
    label_map: LabelMap
    splits: dict[str, tuple[Sample, ...]]
    note: str | None = None
    unpaired: tuple[Unpaired, ...] = ()

    def split(self, name: str) -> tuple[Sample, ...]:
        """Return the samples of a split.

        Raises:
            DatasetError: There is no such split; the message names the existing ones.
        """
        if name not in self.splits:
            raise DatasetError(f"{self.root} has no split {name!r}; {closest(name, list(self.splits))}")
        return self.splits[name]


def open_dataset(root: Path, needed: Collection[str] | None = None, *, lenient: bool = False) -> Dataset:
    """Find the splits and classes of a data folder.

    Args:
        root: The folder.
        needed: The splits that will be used; None stands for all. In other splits, such as a test split without masks,
            unpaired images and masks are left out; a split of which nothing remains is left out too.
        lenient: Whether to leave out images without a mask, masks without an image, and masks that cannot be read,
            instead of refusing them; a split of which nothing remains is then left out, unless it is train or val.

    Raises:
        DatasetError: The folder fits no layout or several, an image or mask is missing, a split is empty, or a file
            that names splits, classes or annotations is not valid.
    """
    if not root.is_dir():
        raise DatasetError(f"data folder {root} {'is a file' if root.exists() else 'does not exist'}; name a folder")
    listing = find_layout(root).read(root, find_labels(root))
    splits = {name: tuple(samples) for name, samples in listing.splits.items()}
    refused = [lone for lone in listing.unpaired if needed is None or lone.split is None or lone.split in needed]
    empty = [name for name, samples in splits.items() if not samples]
    left_out = {lone.split for lone in refused} - {"train", "val"} if lenient else set()
    if refused and not (lenient and left_out.issuperset(empty)):
        more = f" ({len(refused) - 1} more lack their other half)" if len(refused) > 1 else ""
        raise DatasetError(f"{refused[0]}; {refused[0].remedy}{more}")
    for name in empty:
        if name not in left_out and (needed is None or name in needed):
            raise DatasetError(f"split {name!r} of {root} is empty; add images or remove the split")
        del splits[name]
    return Dataset(
        root, listing.label_map or _count_classes(root, splits, lenient=lenient), splits, listing.note, listing.unpaired
    )


def fingerprint(dataset: Dataset, splits: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of the label map and of the names and contents of some splits' images and masks.

    It does not depend on the order of the samples or on the folder's path.
    """
    total = hashlib.sha256(dataset.label_map.hash.encode())
    for split in sorted(splits):
        samples = sorted(dataset.split(split), key=lambda sample: sample.name)
        for line in in_threads(_fingerprint_line, samples):
            total.update(f"{split}\n".encode() + line)
    return total.hexdigest()


def _count_classes(root: Path, splits: dict[str, tuple[Sample, ...]], *, lenient: bool) -> LabelMap:
    if "train" not in splits:
        raise DatasetError(f"{root} has neither {CLASSES_FILE} nor a train split whose masks would tell the classes")

    def count(sample: Sample) -> NDArray[np.int64] | DatasetError:
        try:
            return count_ids(sample.mask.read(), MASK_IDS)
        except DatasetError as error:
            if lenient:
                return error
            raise

    looks = list(in_threads(count, splits["train"]))
    errors = [look for look in looks if isinstance(look, DatasetError)]
    counts = sum((look for look in looks if not isinstance(look, DatasetError)), np.zeros(MASK_IDS, np.int64))
    present = [int(i) for i in np.flatnonzero(counts) if i != IGNORE_ID]
    if not present or max(present) == 0:
        if errors:  # the unreadable masks may be the ones that contain further classes
            more = f" ({len(errors) - 1} more of {len(looks)} training masks cannot be read)" if len(errors) > 1 else ""
            raise DatasetError(f"{errors[0]}{more}")
        binary = " (0/255 binary masks? write 1 for 255)" if counts[IGNORE_ID] else ""
        raise DatasetError(
            f"the training masks of {root} hold no class but 0{binary}; write ids 0 to K - 1, or name the classes in"
            f" {CLASSES_FILE}"
        )
    return LabelMap.from_names([f"class {i}" for i in range(max(present) + 1)], ignore_id=IGNORE_ID)


def _fingerprint_line(sample: Sample) -> bytes:
    digests = [hashlib.sha256(data).hexdigest() for data in (sample.image.read_bytes(), sample.mask.content())]
    return "\n".join([sample.image.name, sample.mask.name, *digests, ""]).encode("utf-8", "surrogateescape")

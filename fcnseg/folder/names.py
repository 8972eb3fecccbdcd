"""The names of a job's files.

`INPUT/a/photo.jpg` gives `OUTPUT/a/photo.png`. If two inputs would get the same name (photo.jpg and photo.tif), the
masks of both keep the inputs' full names: photo.jpg.png and photo.tif.png. Further files of an image are named after
its mask (see `pictures`).
"""

from collections.abc import Iterable, Sequence

from fcnseg.errors import UsageError

MANIFEST = "manifest.jsonl"
EARLIER = ".manifest.earlier.jsonl"
PARQUET = "manifest.parquet"
REPORT = "report.html"
JOB = "fcnseg.json"
COCO = "coco.json"
_OWN = (MANIFEST, PARQUET, REPORT, JOB, COCO)


def name_masks(names: Sequence[str], suffix: str) -> list[str]:
    """Name the masks of inputs.

    Args:
        names: The inputs' names, with `/` between folders.
        suffix: The suffix of masks.

    Raises:
        UsageError: Two inputs would still get the same mask.
    """
    masks = {name: _stem(name) + suffix for name in names}
    full: set[str] = set()
    while clashing := _clashing(masks.items()) - full:
        full |= clashing
        # A full name may clash too, for example with the mask of an image called photo.jpg.png: hence the loop.
        masks |= {name: name + suffix for name in clashing}
    if len(set(masks.values())) < len(names):
        twice = next(mask for mask in masks.values() if list(masks.values()).count(mask) > 1)
        raise UsageError(f"two inputs have one mask, {twice}; rename one of them, or segment them into two folders")
    return [masks[name] for name in names]


def _clashing(masks: Iterable[tuple[str, str]]) -> set[str]:
    owners: dict[str, list[str]] = {own: [own] for own in _OWN}
    for name, mask in masks:
        # Names that differ only in case are the same file on some systems.
        owners.setdefault(mask.casefold(), []).append(name)
    return {name for rivals in owners.values() if len(rivals) > 1 for name in rivals} - set(_OWN)


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    stem, dot, _ = last.rpartition(".")
    return f"{folder}{slash}{stem if dot and stem else last}"

"""One image with the mask that belongs to it."""

from dataclasses import dataclass
from pathlib import Path

from training.mask_files import MaskSource


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its mask.

    Attributes:
        name: The image's name within its split.
        image: The image file.
        mask: What its mask is read from.
    """

    name: str
    image: Path
    mask: MaskSource

"""A sample: an image and its mask."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnseg import images
from fcnseg.errors import DatasetError, ImageError
from training.mask_files import MaskSource


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its mask.

    Attributes:
        name: The image's name within its split.
        image: The image file.
        mask: The source of its mask.
    """

    name: str
    image: Path
    mask: MaskSource


def read_sample(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read an image, (H, W, 3) uint8 RGB, through the runtime's own decoder, and its mask, (H, W) uint8 ids.

    Raises:
        DatasetError: A file cannot be read, the mask's pixels are not ids or colours of classes, or the sizes differ.
    """
    image, mask = read_image(sample), sample.mask.read()
    if (fault := size_fault(sample, image, mask)) is not None:
        raise DatasetError(fault)
    return image, mask


def read_image(sample: Sample) -> NDArray[np.uint8]:
    """Read an image, (H, W, 3) uint8 RGB, through the runtime's own decoder.

    Raises:
        DatasetError: The image cannot be read.
    """
    try:
        return images.read(sample.image)
    except ImageError as error:
        raise DatasetError(f"{error}, or take it out of the data") from error


def size_fault(sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> str | None:
    """Describe how the sizes of an image and its mask differ, and the remedy; return None if they are equal."""
    if mask.shape == image.shape[:2]:
        return None
    sizes = (
        f"mask {sample.mask} is {mask.shape[1]}x{mask.shape[0]} but its image {sample.image.name} is"
        f" {image.shape[1]}x{image.shape[0]}"
    )
    if mask.shape == images.read(sample.image, upright=False).shape[:2]:
        return f"{sizes} as its EXIF orientation turns it; turn the mask too, or store the image as it is to be seen"
    return f"{sizes}; give both one size"

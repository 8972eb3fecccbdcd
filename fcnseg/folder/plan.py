"""What a job is to do: which image becomes which mask, and that no file takes another's place."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fcnseg.errors import UsageError
from fcnseg.files import require_place
from fcnseg.folder.inputs import find_inputs
from fcnseg.folder.mask_files import MaskFormat
from fcnseg.folder.names import name_masks
from fcnseg.pictures import Pictures
from fcnseg.types import LabelMap


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image to segment.

    Attributes:
        image: The image file.
        name: What the manifest calls it: its path below the input, with `/` between folders.
        mask: Its mask's path below the output, with `/` between folders.
    """

    image: str
    name: str
    mask: str


@dataclass(frozen=True)
class Plan:
    """What a job is to do.

    Attributes:
        images: At least one, in the order in which they are taken.
        output: The folder for what is written.
        mask_format: How masks are stored.
        single: Whether the input is one image file: it is then always segmented, and there is nothing but its mask and
            what was asked for beside it.
    """

    images: Sequence[PlannedImage]
    output: Path
    mask_format: MaskFormat
    single: bool


def plan(source: str | Path, output: Path, mask_format: MaskFormat = MaskFormat.PNG) -> Plan:
    """Find images and name their masks.

    Args:
        source: An image file, a folder, a pattern or a list, as for `find_inputs`.
        output: The folder for the masks; for a single image a file's name will do too, whose suffix then decides the
            format.
        mask_format: How masks are stored.

    Raises:
        UsageError: There is no image, or a mask would take the place of an image or of another mask.
    """
    inputs = find_inputs(source, output)
    if inputs.single and output.suffix and not output.is_dir():
        mask_format = MaskFormat.of(output.suffix)
        masks, folder = [output.name], output.parent
    else:
        masks, folder = name_masks([image.name for image in inputs.images], mask_format.suffix), output
        if output.is_file():
            raise UsageError(f"output {output} is a file; name a folder for the masks")
        require_place(output / "any")
    planned = [PlannedImage(image.path, image.name, mask) for image, mask in zip(inputs.images, masks, strict=True)]
    found = Plan(planned, folder, mask_format, inputs.single)
    _require_apart(found, (item.mask for item in planned), "the mask")
    return found


def require_room(found: Plan, pictures: Pictures, label_map: LabelMap) -> None:
    """Check that what is written beside masks takes no other file's place.

    Raises:
        UsageError: It would take the place of an image or of a mask.
    """
    # A mask's neighbours are named after it alone, so one set of suffixes does for all.
    stem = Path("mask.png")
    suffixes = [path.name.removeprefix("mask") for path in pictures.paths(stem, label_map)]
    if not suffixes:
        return
    masks = {item.mask for item in found.images}
    neighbours = [os.path.splitext(item.mask)[0] + suffix for item in found.images for suffix in suffixes]  # noqa: PTH122
    for name in neighbours:
        if name in masks:
            raise UsageError(f"the file {name} would be both a mask and a picture of another; rename an input")
    _require_apart(found, iter(neighbours), "the picture")


def _require_apart(found: Plan, names: Iterator[str], what: str) -> None:
    """Check that no file to be written is an input."""
    real = cache(os.path.realpath)  # one look for each folder, not for each file

    def place(folder: str, name: str) -> tuple[str, str]:
        return real(folder or "."), name

    inputs = {place(*os.path.split(item.image)) for item in found.images}
    inputs |= {os.path.split(os.path.realpath(item.image)) for item in found.images if os.path.islink(item.image)}  # noqa: PTH114
    for name in names:
        if place(*os.path.split(os.path.join(found.output, name))) in inputs:  # noqa: PTH118
            raise UsageError(
                f"{what} {found.output / name} would take the place of an input image; name another output folder"
            )

"""Plan a job: name a mask for each image, and check that no file would overwrite another."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from fcnseg import images
from fcnseg.errors import UsageError
from fcnseg.files import require_place, shown
from fcnseg.folder.inputs import find_inputs
from fcnseg.folder.mask_files import MaskFormat
from fcnseg.folder.names import name_masks
from fcnseg.pictures import Pictures
from fcnseg.types import LabelMap

_OF_FILES = {*images.SUFFIXES, *(mask_format.suffix for mask_format in MaskFormat)}


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image to segment.

    Attributes:
        image: The image file.
        name: Its name in the manifest: the path relative to the input, with `/` between folders.
        mask: Its mask's path relative to the output, with `/` between folders.
    """

    image: str
    name: str
    mask: str


@dataclass(frozen=True)
class Plan:
    """A job's images and output.

    Attributes:
        images: At least one image, in the order in which they are segmented.
        output: The folder for all files that are written.
        mask_format: How masks are stored.
        single: Whether the input is one image file: it is then always segmented, and only its mask and the further
            files asked for are written.
    """

    images: Sequence[PlannedImage]
    output: Path
    mask_format: MaskFormat
    single: bool


def plan(source: str | Path, output: Path, mask_format: MaskFormat = MaskFormat.PNG) -> Plan:
    """Find images and name their masks.

    Args:
        source: An image file, a folder, a pattern or a list, as for `find_inputs`.
        output: The folder for the masks; for a single image it may be a file name, whose suffix then decides the
            format.
        mask_format: How masks are stored.

    Raises:
        UsageError: There is no image, or a mask would overwrite an image or another mask.
    """
    inputs = find_inputs(source, output)
    if inputs.single and output.suffix and not output.is_dir():
        mask_format = MaskFormat.of(output.suffix)
        masks, folder = [output.name], output.parent
    else:
        masks, folder = name_masks([image.name for image in inputs.images], mask_format.suffix), output
        if output.is_file():
            raise UsageError(f"output {output} is a file; name a folder for the masks")
        if output.suffix.lower() in _OF_FILES and not output.is_dir():
            raise UsageError(
                f"output {output} is named as a file, and input {source} is not a single image; name a folder for the"
                " masks"
            )
        require_place(output / "any")
    planned = [PlannedImage(image.path, image.name, mask) for image, mask in zip(inputs.images, masks, strict=True)]
    found = Plan(planned, folder, mask_format, inputs.single)
    _require_apart(found)
    return found


def require_room(found: Plan, pictures: Pictures, label_map: LabelMap) -> None:
    """Check that the files written beside masks do not overwrite other files.

    Raises:
        UsageError: A file would overwrite an image or a mask.
    """
    # The files beside a mask are named after it alone, so one set of suffixes is valid for all masks.
    stem = Path("mask.png")
    suffixes = {path.name.removeprefix("mask") for path in pictures.paths(stem, label_map)}
    if not suffixes:
        return
    stems = {os.path.splitext(item.mask)[0] for item in found.images}  # noqa: PTH122

    def is_picture(name: str) -> bool:
        """Decide by the name, since a mask may have a thousand pictures."""
        dots = (i for i, letter in enumerate(name) if letter == ".")
        return any(name[i:] in suffixes and name[:i] in stems for i in dots)

    for item in found.images:
        if is_picture(item.mask):
            raise UsageError(f"the file {item.mask} would be both a mask and a picture of another; rename an input")
    within = os.path.join(os.path.realpath(found.output), "")  # noqa: PTH118
    for folder, name in _inputs(found):
        path = os.path.join(folder, name)  # noqa: PTH118
        if path.startswith(within) and is_picture(path.removeprefix(within)):
            raise UsageError(f"the picture {path} would take the place of an input image; name another output folder")


def _require_apart(found: Plan) -> None:
    """Check that no mask would overwrite an input, or has the path of a folder of masks."""
    inputs, real = _inputs(found), cache(os.path.realpath)
    parents = {os.path.dirname(item.mask) for item in found.images}  # noqa: PTH120
    folders = {str(folder) for parent in map(PurePosixPath, parents) for folder in (parent, *parent.parents)}
    for item in found.images:
        folder, name = os.path.split(os.path.join(found.output, item.mask))  # noqa: PTH118
        if (real(folder or "."), name) in inputs:
            raise UsageError(
                f"the mask {found.output / item.mask} would take the place of an input image; name another output"
                " folder"
            )
        if item.mask in folders:
            raise UsageError(
                f"{found.output / item.mask} would be both the mask of {shown(Path(item.image))} and a folder of masks;"
                " rename one of the inputs"
            )


def _inputs(found: Plan) -> set[tuple[str, str]]:
    """Return the real folder and the name of every input, and of the targets of links among them."""
    real = cache(os.path.realpath)  # one lookup for each folder, not for each file
    split = (os.path.split(item.image) for item in found.images)
    links = (os.path.realpath(item.image) for item in found.images if os.path.islink(item.image))  # noqa: PTH114
    return {(real(folder or "."), name) for folder, name in split} | {os.path.split(path) for path in links}

"""Read a COCO annotation file, packing entries while it is parsed: peak memory is about twice the file's size."""

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from fcnseg.errors import DatasetError
from fcnseg.images import DEFAULT_LIMITS
from training.coco_masks import Polygons, RunLengths


class CocoImage(BaseModel):
    """One entry of `images`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: StrictInt | StrictStr
    file_name: Annotated[str, Field(min_length=1)]
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]


class CocoCategory(BaseModel):
    """One entry of `categories`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: StrictInt
    name: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """One entry of `annotations`, packed."""

    id: int | str
    image_id: int | str
    category_id: int
    area: Polygons | RunLengths


class _Packed(BaseModel):
    model_config = ConfigDict(extra="ignore")

    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[Any]  # packed by the parser


@dataclass(frozen=True)
class CocoFile:
    """An annotation file.

    Attributes:
        path: The file.
        images: Images in the file's order, with unique ids.
        categories: Category names by id, in the order of the ids.
        annotations: The annotations of each image, by the image's id.
    """

    path: Path
    images: tuple[CocoImage, ...]
    categories: Mapping[int, str]
    annotations: Mapping[int | str, list[CocoAnnotation]]


def read_coco(path: Path) -> CocoFile:
    """Read a COCO annotation file.

    Raises:
        DatasetError: The file is not COCO JSON, or an entry is invalid or refers to an id that is not in the file.
    """
    try:
        packed = _Packed.model_validate(json.loads(path.read_bytes(), object_hook=_pack))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DatasetError(f"{path}: not valid COCO at {where}: {first['msg']}; export the file again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as COCO annotations: {error}") from error
    categories = {category.id: category.name for category in sorted(packed.categories, key=lambda found: found.id)}
    if not categories or len(set(categories.values())) != len(packed.categories):
        raise DatasetError(f"{path}: categories are missing, or share an id or a name; give each its own")
    if len({image.id for image in packed.images}) != len(packed.images):
        raise DatasetError(f"{path}: two images share an id; give each its own")
    for image in packed.images:
        if image.height * image.width > DEFAULT_LIMITS.max_pixels:
            raise DatasetError(
                f"{path}: {image.file_name} has {image.width}x{image.height} pixels, more than the limit of"
                f" {DEFAULT_LIMITS.max_pixels}; correct its size or take it out"
            )
    return CocoFile(path, tuple(packed.images), categories, _by_image(path, packed, categories))


def _by_image(path: Path, packed: _Packed, categories: Mapping[int, str]) -> dict[int | str, list[CocoAnnotation]]:
    annotations: dict[int | str, list[CocoAnnotation]] = {image.id: [] for image in packed.images}
    for i, found in enumerate(packed.annotations):
        if not isinstance(found, CocoAnnotation):
            raise DatasetError(f"{path}: annotations.{i} has no image_id or no category_id; add them or take it out")
        for kind, key, known in (
            ("image_id", found.image_id, annotations.keys()),
            ("category_id", found.category_id, categories.keys()),
        ):
            if key not in known:
                raise DatasetError(
                    f"{path}: annotation {found.id} has {kind} {key}, which the file does not define; correct it or"
                    " take it out"
                )
        annotations[found.image_id].append(found)
    return annotations


def _pack(fields: dict[str, Any]) -> dict[str, Any] | CocoAnnotation:
    """Pack an annotation as soon as it is parsed: Python lists of numbers would take ten times the file's size."""
    if not {"image_id", "category_id"} <= fields.keys():
        return fields
    name = fields.get("id", "without an id")
    try:
        for key in ("image_id", "category_id"):
            if not isinstance(fields[key], int | str):
                raise _EntryError(f"has the {key} {fields[key]!r}, which is no whole number")
        area = _pack_area(fields.get("segmentation"))
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise ValueError(
            f"annotation {name} (image_id {fields['image_id']}) {_reason(error)}; correct it or take it out"
        ) from error
    return CocoAnnotation(name, fields["image_id"], fields["category_id"], area)


def _pack_area(segmentation: Any) -> Polygons | RunLengths:
    if not segmentation:
        raise _EntryError("has no segmentation, only a box or a point: draw a polygon or a mask")
    if isinstance(segmentation, list):
        outlines = tuple(array("d", outline) for outline in segmentation)
        for outline in outlines:
            if len(outline) < 6 or len(outline) % 2:
                raise _EntryError(f"has a polygon of {len(outline)} numbers where x, y of three points or more are due")
        return Polygons(outlines)
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    packed = counts.encode("ascii") if isinstance(counts, str) else array("q", counts)
    return RunLengths(packed, (height, width))


class _EntryError(ValueError):
    """An annotation has COCO's form but cannot be drawn; the message says why."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _EntryError) else f"has a segmentation that is not of COCO's form ({error})"

"""Encode and read mask files in the formats that a job can write."""

import io
import json
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from fcnseg import masks, rle
from fcnseg.errors import MaskError, UsageError
from fcnseg.geotiff import NOWHERE, GeoTags, tiff_info
from fcnseg.masks import Encoding
from fcnseg.regions import Box
from fcnseg.types import ClassMap, LabelMap

_COMPRESSION = "tiff_adobe_deflate"


class MaskFormat(StrEnum):
    """How a mask is stored; equal class maps (and with TIFF, equal places on earth) give equal bytes.

    PNG: 8-bit indexed with the classes' colours, 16-bit greyscale beyond 256 classes.
    TIFF: Likewise, compressed by deflate.
    NPY: NumPy's file of an (H, W) uint8 or uint16 array.
    COCO: A COCO data set of one image: run lengths, area and box of each class present.
    """

    PNG = "png"
    TIFF = "tiff"
    NPY = "npy"
    COCO = "coco"

    @property
    def suffix(self) -> str:
        """The suffix of such files."""
        return _SUFFIXES[self]

    @classmethod
    def of(cls, suffix: str) -> "MaskFormat":
        """Return the format of files with a suffix (any case).

        Raises:
            UsageError: No format has this suffix.
        """
        if (mask_format := _BY_SUFFIX.get(suffix.lower())) is not None:
            return mask_format
        raise UsageError(
            f"masks cannot be stored as {suffix or 'a file without a suffix'}; use .png, .tif, .npy, .json"
        )


_SUFFIXES = {MaskFormat.PNG: ".png", MaskFormat.TIFF: ".tif", MaskFormat.NPY: ".npy", MaskFormat.COCO: ".json"}
_BY_SUFFIX = {".tiff": MaskFormat.TIFF, **{suffix: mask_format for mask_format, suffix in _SUFFIXES.items()}}


def encode(
    class_map: ClassMap, mask_format: MaskFormat, label_map: LabelMap, name: str, geo_tags: GeoTags = NOWHERE
) -> bytes:
    """Encode a class map as a file's bytes.

    Args:
        class_map: (H, W) uint8 or uint16 ids.
        mask_format: The format of the file.
        label_map: Gives names and colours.
        name: The image's name, which COCO files contain.
        geo_tags: Where on earth the image lies, which TIFF files contain.

    Raises:
        MaskError: COCO's run-length encoding cannot represent the class map.
    """
    match mask_format:
        case MaskFormat.PNG:
            return masks.encode(class_map, Encoding.PNG, label_map)
        case MaskFormat.TIFF:
            return _encode_tiff(class_map, label_map, geo_tags)
        case MaskFormat.NPY:
            file = io.BytesIO()
            np.save(file, np.ascontiguousarray(class_map), allow_pickle=False)
            return file.getvalue()
        case MaskFormat.COCO:
            return json.dumps(_coco(class_map, label_map, name)).encode()


def read(path: Path, mask_format: MaskFormat, label_map: LabelMap) -> ClassMap:
    """Read a file that `encode` made, as (H, W) ids.

    Raises:
        MaskError: The file does not exist, or does not hold such a mask.
    """
    try:
        match mask_format:
            case MaskFormat.PNG:
                return masks.read_ids(path)
            case MaskFormat.TIFF:
                with TiffImagePlugin.TiffImageFile(path) as file:
                    return _ids(np.asarray(file), label_map)
            case MaskFormat.NPY:
                return _ids(np.load(path, allow_pickle=False), label_map)
            case MaskFormat.COCO:
                return _read_coco(json.loads(path.read_bytes()), label_map)
    except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
        raise MaskError(f"mask {path} cannot be read ({error}); make it again") from error


def _ids(values: NDArray[np.generic], label_map: LabelMap) -> ClassMap:
    return cast("ClassMap", values.astype(label_map.id_dtype))


def _encode_tiff(class_map: ClassMap, label_map: LabelMap, geo_tags: GeoTags) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(class_map))
    if class_map.dtype == np.uint8:
        picture.putpalette(label_map.palette[:256].tobytes())
    file = io.BytesIO()
    picture.save(file, "TIFF", compression=_COMPRESSION, tiffinfo=tiff_info(geo_tags))
    return file.getvalue()


def _coco(class_map: ClassMap, label_map: LabelMap, name: str) -> dict[str, Any]:
    height, width = class_map.shape
    annotations = []
    for number, (class_id, counts) in enumerate(rle.encode(class_map).items(), start=1):
        mask = class_map == class_id
        box = Box.around(mask)
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": class_id,
                "segmentation": {"size": [height, width], "counts": counts.decode()},
                "area": int(np.count_nonzero(mask)),
                "bbox": [box.left, box.top, box.width, box.height],
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
        "categories": coco_categories(label_map),
        "annotations": annotations,
    }


def coco_categories(label_map: LabelMap) -> list[dict[str, Any]]:
    """Return a label map as COCO's categories."""
    return [{"id": info.id, "name": info.name, "color": list(info.colour)} for info in label_map.classes]


def _read_coco(document: dict[str, Any], label_map: LabelMap) -> ClassMap:
    (image,) = document["images"]
    runs = {entry["category_id"]: entry["segmentation"]["counts"].encode() for entry in document["annotations"]}
    return rle.decode(runs, shape=(image["height"], image["width"]), dtype=label_map.id_dtype)

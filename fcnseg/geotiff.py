"""The georeference of a TIFF file: its GeoTIFF tags, which are copied unchanged from an image to its mask.

https://docs.ogc.org/is/19-008r4/19-008r4.html
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from PIL.TiffImagePlugin import ImageFileDirectory_v2

GeoTags: TypeAlias = Mapping[int, Any]
"""Values of GeoTIFF tags by tag number; empty if a file has no georeference."""

NOWHERE: GeoTags = MappingProxyType({})
_SHORT, _DOUBLE, _ASCII = 3, 12, 2
_TYPES = {
    33550: _DOUBLE,  # ModelPixelScale
    33922: _DOUBLE,  # ModelTiepoint
    34264: _DOUBLE,  # ModelTransformation
    34735: _SHORT,  # GeoKeyDirectory
    34736: _DOUBLE,  # GeoDoubleParams
    34737: _ASCII,  # GeoAsciiParams
}
_MOST_NUMBERS = 1 << 14  # numbers in a tag; a ground control point has six


def read_geo_tags(tags: ImageFileDirectory_v2) -> GeoTags:
    """Return a file's GeoTIFF tags; none at all if one of them has a wrong type or is huge."""
    try:
        found = {tag: tags[tag] for tag in _TYPES if tag in tags}
    except Exception:  # noqa: BLE001  # damaged tags raise anything
        return NOWHERE
    return found if all(_is_plain(tags.tagtype[tag], tag, value) for tag, value in found.items()) else NOWHERE


def tiff_info(geo_tags: GeoTags) -> ImageFileDirectory_v2:
    """Return tags in the form in which Pillow writes them into a TIFF file."""
    directory = ImageFileDirectory_v2()
    for tag, value in geo_tags.items():
        directory.tagtype[tag] = _TYPES[tag]
        directory[tag] = value
    return directory


def _is_plain(kind: int, tag: int, value: Any) -> bool:
    """Tell whether a value has its tag's type, and no more numbers or characters than allowed."""
    return kind == _TYPES[tag] and (not hasattr(value, "__len__") or len(value) <= _MOST_NUMBERS)  # or a number

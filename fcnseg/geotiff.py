"""Where on earth a TIFF file says that it lies: the tags of GeoTIFF, carried from an image to its mask as they are.

https://docs.ogc.org/is/19-008r4/19-008r4.html
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from PIL.TiffImagePlugin import ImageFileDirectory_v2

GeoTags: TypeAlias = Mapping[int, Any]
"""Values of GeoTIFF's tags, by their numbers; none where a file does not say where it lies."""

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
_MOST_NUMBERS = 1 << 14  # of a tag: ground control points are six each


def read_geo_tags(tags: ImageFileDirectory_v2) -> GeoTags:
    """Return the tags of GeoTIFF among a file's; none where one of them is not of its type, or is huge."""
    try:
        found = {tag: tags[tag] for tag in _TYPES if tag in tags}
    except Exception:  # noqa: BLE001  # damaged tags raise anything
        return NOWHERE
    return found if all(_is_plain(tags.tagtype[tag], tag, value) for tag, value in found.items()) else NOWHERE


def tiff_info(geo_tags: GeoTags) -> ImageFileDirectory_v2:
    """Return tags as Pillow writes them into a TIFF file."""
    directory = ImageFileDirectory_v2()
    for tag, value in geo_tags.items():
        directory.tagtype[tag] = _TYPES[tag]
        directory[tag] = value
    return directory


def _is_plain(kind: int, tag: int, value: Any) -> bool:
    """Whether a value is of its tag's type, and has not more numbers, or letters, than are wanted."""
    return kind == _TYPES[tag] and (not hasattr(value, "__len__") or len(value) <= _MOST_NUMBERS)  # a number has none

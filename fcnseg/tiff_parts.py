"""Check the cost of decoding a TIFF's tiles or strips, before a decoder gets them."""

from collections.abc import Mapping
from typing import Any

from PIL.TiffImagePlugin import STRIPOFFSETS, TILELENGTH, TILEOFFSETS, TILEWIDTH, TiffImageFile

from fcnseg.errors import ImageError
from fcnseg.jpeg_scans import MOST_SCANS

_USUAL_TILE = 1 << 20  # pixels
_TILE_TO_IMAGE = 4
_SCANS_A_PART = 10


def require_usual_tiles(height: int, width: int, tags: Mapping[int, Any]) -> None:
    """Check that a TIFF's tiles are not far larger than the image, because a decoder allocates a whole tile.

    Args:
        height: The image's rows.
        width: The image's columns.
        tags: The file's tags by their numbers, as Pillow reads them.

    Raises:
        ImageError: The tiles are too large, or their sides are not integers.
    """
    tile_width, tile_height = tags.get(TILEWIDTH, 0), tags.get(TILELENGTH, 0)
    # Texts or bytes would be multiplied as well, which would make gigabytes of them.
    if not (isinstance(tile_width, int) and isinstance(tile_height, int)):
        raise ImageError("the TIFF image has tiles whose sides are not whole numbers; store it again")
    if tile_width * tile_height > max(width * height, _USUAL_TILE) * _TILE_TO_IMAGE:
        raise ImageError(
            f"the TIFF image of {width} x {height} pixels has tiles of {tile_width} x {tile_height}; store it again"
        )


def require_few_scans_in_parts(header: TiffImageFile, data: bytes) -> None:
    """Check that a TIFF's tiles or strips do not have so many JPEG scans that decoding takes excessively long.

    Args:
        header: The file, whose header has been read.
        data: The file's bytes.

    Raises:
        ImageError: A tile or strip is a JPEG with too many scans.
    """
    tags = header.tag_v2
    if header.info.get("compression") in {"jpeg", "tiff_jpeg"}:
        parts = max(len(tags.get(tag, ())) for tag in (STRIPOFFSETS, TILEOFFSETS))
        most = MOST_SCANS + _SCANS_A_PART * parts
        if data.count(b"\xff\xda") > most:
            raise ImageError(f"the TIFF image of {parts} parts has more than {most} scans; store it again")

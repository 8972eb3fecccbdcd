"""Decode image bytes to upright RGB pixels: the only module through which images enter.

Pillow reads the header without decoding pixels, so that the limits are checked before anything is allocated. Then

- OpenCV decodes greyscale and colour JPEG and still WebP, the most frequent formats (a quarter or more faster), and
  still AVIF without alpha, during which Pillow would block every other thread;
- Pillow decodes what OpenCV decodes wrongly or not at all: CMYK JPEG (OpenCV rounds twice), LAB, 12-bit and float TIFF,
  PNG whose checksums are damaged or whose EXIF follows the pixels (and libpng under OpenCV writes to stderr), palettes
  with transparency, all kinds of BMP, GIF and TIFF, animated WebP and AVIF, and JPEG without an end-of-image marker,
  which some versions of OpenCV complete with grey rows. Pillow also decides about every file that OpenCV refuses.

Every caller may rely on these rules (docs/images.md has them as a table):

- The orientation (EXIF's; AVIF's `irot` and `imir`) is applied, here and nowhere else, unless the caller asks for the
  pixels as they are stored. Of a file with several frames the first is taken.
- Alpha and transparency are dropped, not blended, because training reads images in this way: the stored colours do not
  change, and no background is invented. Colour profiles and PNG's gamma are not applied, for the same reason.
- Samples of more than 8 bits are scaled to 0..255 as `sample_depth` describes.
"""

import io
import logging
import re
import stat
import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fcnseg.avif import coded_size
from fcnseg.errors import ImageError, ImageTooLargeError
from fcnseg.files import shown
from fcnseg.geotiff import NOWHERE, read_geo_tags
from fcnseg.header_stream import HeaderStream
from fcnseg.jpeg_scans import MOST_SCANS, has_too_many_scans
from fcnseg.pillow_decoding import SMALLER, decode_with_pillow, orientation_of, refused, turn_upright
from fcnseg.png_chunks import without_unused_chunks
from fcnseg.tiff_directory import MOST_NUMBERS, has_huge_entries
from fcnseg.tiff_parts import require_few_scans_in_parts, require_usual_tiles
from fcnseg.tiff_planes import TiffFile

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
"""Usual file suffixes of the accepted formats, in lower case; `decode` looks only at the content."""

_ACCEPTED = "JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF"
# The plugins' classes are called directly: Image.open would first apply Pillow's own pixel limit, a process-wide
# setting that warns or raises.
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_READERS: tuple[tuple[tuple[bytes, ...], type[ImageFile]], ...] = (
    ((_JPEG,), JpegImageFile),
    ((_PNG,), PngImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffFile),
    ((b"BM",), BmpImageFile),
    ((b"GIF87a", b"GIF89a"), GifImageFile),
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_SIZE = re.compile(rb"\0\0\0\x14ispe\0{4}(.{4})(.{4})", re.DOTALL)
_AVIF_HEAD_BYTES = 2**16
_END_OF_IMAGE = b"\xff\xd9"

getattr(cv2.utils, "logging", cv2).setLogLevel(0)  # silent: failures become an ImageError; OpenCV 5 moved the module
# Pillow's warnings (mostly about damaged EXIF) are either harmless to the pixels or end in an ImageError. A filter that
# is installed once is thread-safe; catch_warnings around every call is not.
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # as with OpenCV
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Appended after existing filters: a program that makes Pillow raise this warning for its own images stays protected.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.", append=True)


@dataclass(frozen=True)
class ImageLimits:
    """Limits beyond which an image is refused before any pixel is decoded.

    Attributes:
        max_bytes: Most bytes of an encoded image.
        max_pixels: Most pixels (height times width).
        max_side: Most rows, and most columns.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 2**27
    max_side: int = 2**16


DEFAULT_LIMITS = ImageLimits()


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, *, upright: bool = True) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF file's bytes.

    Args:
        data: The file's bytes.
        limits: Limits that are checked before any pixel is decoded.
        upright: Whether to apply the image's orientation, or leave the pixels as they are stored.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageTooLargeError: There are more bytes, pixels, rows or columns than the limits allow.
        ImageError: The format is not accepted, or the file is damaged or cut short.
    """
    return EncodedImage(data, limits, upright=upright).decode()


class EncodedImage:
    """An image file whose header has been read and checked against the limits; its pixels are not decoded yet.

    Args:
        data: A JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF file's bytes.
        limits: Limits beyond which the image is refused.
        upright: Whether to apply the image's orientation, or leave the pixels as they are stored.

    Attributes:
        geo_tags: Where on earth the decoded pixels of a GeoTIFF lie; empty if decoding rotates or mirrors them.

    Raises:
        ImageTooLargeError: There are more bytes, pixels, rows or columns than the limits allow.
        ImageError: The format is not accepted, or the header is damaged or cut short.
    """

    def __init__(self, data: bytes, limits: ImageLimits = DEFAULT_LIMITS, *, upright: bool = True) -> None:
        if not data:
            raise ImageError(f"the image is empty (0 bytes); give the bytes of a {_ACCEPTED} file")
        _check_bytes(len(data), limits)
        if data.startswith(_PNG):
            data = without_unused_chunks(data)
        self._data = data
        self._upright = upright
        self.geo_tags = NOWHERE
        self._stream = HeaderStream(data, is_jpeg=data.startswith(_JPEG))
        self._header = _read_header(self._stream, data, limits)
        width, height = self._header.size
        name = f"the {self._header.format} image"
        if width < 1 or height < 1:
            raise ImageError(f"{name} has no pixels ({width} x {height}); store it again")
        require_within(limits, height, width, name)
        match self._header:
            case AvifImageFile():
                _require_coded_within(limits, self._header, data)
            case JpegImageFile():
                _require_few_scans(data, self._stream.tell())
            case TiffImageFile():
                require_usual_tiles(height, width, self._header.tag_v2)
                require_few_scans_in_parts(self._header, data)
                if not (upright and orientation_of(self._header) in range(2, 9)):
                    self.geo_tags = read_geo_tags(self._header.tag_v2)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as stored in the header; applying the orientation may swap them."""
        return self._header.height, self._header.width

    def decode(self) -> NDArray[np.uint8]:
        """Decode the pixels; may be called only once.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            ImageError: The file is damaged or cut short.
        """
        image = _decode_with_opencv(self._header, self._stream, self._data)
        if image is None:
            return decode_with_pillow(self._header, upright=self._upright)
        return turn_upright(image, orientation_of(self._header)) if self._upright else image


def require_within(limits: ImageLimits, height: int, width: int, name: str) -> None:
    """Check an image's size.

    Args:
        limits: The limits.
        height: The image's rows.
        width: The image's columns.
        name: What the message calls the image.

    Raises:
        ImageTooLargeError: The image has more pixels, rows or columns than the limits allow.
    """
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"{name} has {width} x {height} = {width * height} pixels, more than the limit of {limits.max_pixels};"
            f" {SMALLER}"
        )
    if max(width, height) > limits.max_side:
        raise ImageTooLargeError(
            f"{name} has {width} x {height} pixels, and its longer side is beyond the limit of {limits.max_side};"
            f" {SMALLER}"
        )


def _require_coded_within(limits: ImageLimits, header: AvifImageFile, data: bytes) -> None:
    """Check that the AV1 data are not larger than the declared size, to which decoders scale only after decoding."""
    height, width = coded_size(data)
    if height <= header.height and width <= header.width:  # tiles of a grid are smaller
        return
    require_within(limits, height, width, "the AV1 data of the AVIF image")
    raise ImageError(
        f"the AVIF image declares {header.width} x {header.height} pixels, and its AV1 data code {width} x {height};"
        " store or send it again"
    )


def _require_few_scans(data: bytes, start: int) -> None:
    """Refuse a JPEG with so many scans that decoding it would take excessively long."""
    if has_too_many_scans(data, start):
        raise ImageError(f"the JPEG image has more than {MOST_SCANS} scans; store it again")


def read(path: Path, limits: ImageLimits = DEFAULT_LIMITS, *, upright: bool = True) -> NDArray[np.uint8]:
    """Read an image file; as `decode`, but every message begins with the path.

    Args:
        path: The file.
        limits: Limits that are checked before any pixel is decoded.
        upright: Whether to apply the image's orientation, or leave the pixels as they are stored.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageTooLargeError: There are more bytes or pixels than the limits allow.
        ImageError: The file cannot be read, is not of an accepted format, or is damaged.
    """
    data = read_bytes(path, limits)
    try:
        return decode(data, limits, upright=upright)
    except ImageError as error:
        raise type(error)(f"{shown(path)}: {error}") from error


def read_bytes(path: Path, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """Read an image file's bytes.

    Raises:
        ImageTooLargeError: There are more bytes than the limits allow.
        ImageError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            # One byte beyond the limit is enough to refuse a file, however long (or endless) it is.
            data = file.read(limits.max_bytes + 1)
            if len(data) > limits.max_bytes:
                _check_bytes(max(path.stat().st_size, len(data)), limits)
    except ImageTooLargeError as error:
        raise ImageTooLargeError(f"{shown(path)}: {error}") from None
    except FileNotFoundError as error:
        if path.is_symlink():
            target = shown(path.readlink())
            raise ImageError(
                f"image {shown(path)} is a link to {target}, which does not exist; bring it back"
            ) from error
        raise ImageError(f"image {shown(path)} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"image {shown(path)} cannot be read: {reason}") from error
    return data


def require_file(path: Path) -> None:
    """Check that a path is not a kind of file whose reading may never end, such as a pipe.

    Raises:
        ImageError: The path is a pipe, a socket or a device.
    """
    with suppress(OSError, ValueError):  # the later read reports these errors
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ImageError(f"image {shown(path)} is a pipe, a socket or a device; name a file")


def require_pixels(image: object) -> None:
    """Check that a value is an array of RGB pixels.

    Raises:
        ImageError: The value is not a (H, W, 3) uint8 array with at least one pixel.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"an image must be a path, the bytes of an image file, or a (H, W, 3) uint8 array; got"
            f" {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ImageError(
            f"an image must be a (H, W, 3) uint8 array of RGB pixels; got shape {image.shape}, dtype {image.dtype}"
        )


def _check_bytes(count: int, limits: ImageLimits) -> None:
    if count > limits.max_bytes:
        raise ImageTooLargeError(
            f"the image has {count} bytes, more than the limit of {limits.max_bytes}; compress it or scale it down"
        )


def _read_header(stream: HeaderStream, data: bytes, limits: ImageLimits) -> ImageFile:
    reader = next((reader for magic, reader in _READERS if data.startswith(magic)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        reader = WebPImageFile
    if _AVIF_BRANDS & _brands(data):
        reader = AvifImageFile
        # libavif has limits of its own, and reports larger images as damaged; so check ours first.
        for width, height in _AVIF_SIZE.findall(data, 0, _AVIF_HEAD_BYTES):
            require_within(limits, int.from_bytes(height, "big"), int.from_bytes(width, "big"), "the AVIF image")
    if reader is None:
        name = _name_format(data)
        what = f"{name} images are not accepted" if name else "the data is not an image that can be recognised"
        raise ImageError(f"{what} (it begins with {data[:8]!r}); use {_ACCEPTED}")
    if reader is TiffFile and has_huge_entries(data):
        raise ImageError(f"the TIFF image's directory has an entry of more than {MOST_NUMBERS} numbers; store it again")
    try:
        header = reader(stream)
    except Image.DecompressionBombError as error:  # WebP's reader allocates its canvas and applies Pillow's own limit
        limit = min(limits.max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or limits.max_pixels))
        raise ImageTooLargeError(
            f"the {reader.format} image has more pixels than the limit of {limit}; {SMALLER}"
        ) from error
    except Exception as error:  # damaged headers raise anything from struct.error to KeyError
        raise refused(reader.format or "", error) from error
    stream.end_header()
    return header


def _brands(data: bytes) -> set[bytes]:
    """Return the compatible brands that an ISO base media file declares; no brands for any other file."""
    if data[4:8] != b"ftyp":
        return set()
    box = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return {box[:4], *(box[i : i + 4] for i in range(8, len(box), 4))}


def _name_format(data: bytes) -> str | None:
    if _HEIF_BRANDS & _brands(data):
        return "HEIC"
    if data.startswith(b"%PDF"):
        return "PDF"
    Image.init()
    for name in Image.ID:
        accept = Image.OPEN[name][1]
        with suppress(IndexError, struct.error):  # some look beyond the end of short data
            if accept is not None and accept(data[:16]):
                return name
    return None


def _decode_with_opencv(header: ImageFile, stream: io.BytesIO, data: bytes) -> NDArray[np.uint8] | None:
    """Decode the formats that OpenCV is trusted with; return None if Pillow has to decode."""
    if header.format == "JPEG":
        # Pillow stopped reading at the start of the scan, after any thumbnail with an end-of-image marker of its own.
        # Search backwards, since the marker is near the end: a search through all data would hold the GIL for long.
        trusted = header.mode in {"L", "RGB"} and data.rfind(_END_OF_IMAGE, stream.tell()) >= 0
    else:
        kinds = {"WEBP": {"RGB", "RGBA", "RGBX"}, "AVIF": {"L", "RGB"}}.get(header.format or "", set())
        trusted = header.mode in kinds and not getattr(header, "is_animated", False)
    if not trusted:
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    if image is None or image.shape != (header.height, header.width, 3):
        return None
    return image.astype(np.uint8, copy=False)

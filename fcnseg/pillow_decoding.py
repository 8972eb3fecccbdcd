"""Decode a file's pixels with Pillow to upright RGB, or raise an error with the reason."""

import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from fcnseg.errors import ImageError, ImageTooLargeError, one_line
from fcnseg.sample_depth import to_8_bits

SMALLER = "scale it down or cut it into tiles"
"""The remedy for an image that is too large."""
_UNSUPPORTED = re.compile("unknown|unsupported|cannot handle|not installed", re.IGNORECASE)
_BAND_PIXELS = 1 << 18
_ORIENTATION_TAG = 0x0112
_INVERSE: dict[object, int] = {6: 8, 8: 6}  # every other orientation is its own inverse
_BITS_PER_SAMPLE_TAG = 258
_SAMPLE_FORMAT_TAG = 339
_WHITE_IS_ZERO = 0


def orientation_of(header: ImageFile) -> object:
    """Return the EXIF orientation; 1, which changes nothing, if there is none."""
    if header.format == "AVIF":
        header.info.pop("xmp", None)  # Pillow would apply its orientation if there is no other; browsers do not
    try:
        return header.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001  # unreadable EXIF is ignored
        return 1


def turn_upright(image: NDArray[np.uint8], orientation: object) -> NDArray[np.uint8]:
    """Apply an EXIF orientation (1 to 8; anything else changes nothing)."""
    if orientation in {5, 6, 7, 8}:
        image = image.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        image = image[::-1]
    if orientation in {2, 3, 6, 7}:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def decode_with_pillow(header: ImageFile, *, upright: bool) -> NDArray[np.uint8]:
    """Decode a file's pixels.

    Args:
        header: The file, whose header has been read.
        upright: Whether to apply the image's orientation.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: The file is damaged, cut short, or of a kind that Pillow does not support.
    """
    try:
        if isinstance(header, TiffImageFile):  # Pillow applies a TIFF's orientation itself when it loads the pixels
            turned = orientation_of(header)
            header.load()
            orientation = 1 if upright else _INVERSE.get(turned, turned)
        else:
            header.load()
            orientation = orientation_of(header) if upright else 1
        return turn_upright(_to_rgb(header), orientation)
    except Exception as error:  # damaged files raise OSError, ValueError, SyntaxError, MemoryError, struct.error ...
        compression = header.info.get("compression", "") if isinstance(header, TiffImageFile) else ""
        raise refused(header.format or "", error, compression) from error


def _to_rgb(image: ImageFile) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):
        grey = to_8_bits(_samples(image), _sample_bits(image))
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
            grey = ~grey  # as Pillow itself does with 8 bits
        return np.repeat(grey[:, :, None], 3, axis=2)
    image.info.pop("transparency", None)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):  # all at once would take three times the pixels' memory
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        # Pillow converts these modes to RGB only via RGBA.
        converted = band.convert("RGBA") if band.mode in {"La", "PA", "RGBa"} else band
        pixels[top : top + rows] = np.asarray(converted.convert("RGB"))
    return pixels


def _samples(header: ImageFile) -> NDArray[np.generic]:
    """Return the samples of a file whose mode begins with I or F; Pillow reads unsigned 32-bit samples as signed."""
    samples = np.asarray(header)
    if header.mode != "I" or not isinstance(header, TiffImageFile):
        return samples
    bits, kind = (header.tag_v2.get(tag, (1,))[0] for tag in (_BITS_PER_SAMPLE_TAG, _SAMPLE_FORMAT_TAG))
    return samples.view(np.uint32) if (bits, kind) == (32, 1) else samples


def _sample_bits(header: ImageFile) -> int:
    if not header.mode.startswith("I;16"):
        return 32
    bits = header.tag_v2.get(_BITS_PER_SAMPLE_TAG, (16,)) if isinstance(header, TiffImageFile) else (16,)
    return int(bits[0])


def refused(name: str, error: Exception, compression: str = "") -> ImageError:
    """Return the error to raise if Pillow cannot read an image.

    Args:
        name: The format's name.
        error: Pillow's error.
        compression: The file's compression; empty if unknown.
    """
    reason = (one_line(error) or type(error).__name__)[:200]
    if isinstance(error, Image.DecompressionBombWarning):  # raised if the importing program has set a filter
        return ImageTooLargeError(f"the {name} image is beyond what Pillow was told to read ({reason}); {SMALLER}")
    if _UNSUPPORTED.search(reason):
        return ImageError(f"the {name} image is of a kind that is not supported ({reason}); store it as 8-bit PNG")
    compressed = f"; its compression is {compression}" if compression else ""
    return ImageError(f"the {name} image is damaged or cut short ({reason}{compressed}); store or send it again")

"""Convert samples of a part of a TIFF file to RGB by its tags, with the same result as `images.decode`."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COLORMAP,
    COMPRESSION,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
)

from fcnseg.sample_depth import to_8_bits

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_JPEG = 7
_TOGETHER = 1  # the samples of a pixel are stored together
_UNSPECIFIED, _PREMULTIPLIED, _UNASSOCIATED = 0, 1, 2  # the kind of an extra sample

Tags: TypeAlias = Mapping[int, Any]
"""The tags of a TIFF file's first image, by their numbers, as Pillow reads them."""
Samples: TypeAlias = NDArray[Any]
"""(h, w, bands) of any dtype, as they are stored."""
Pixels: TypeAlias = NDArray[np.uint8]
"""(h, w, 3) uint8 RGB."""
Conversion: TypeAlias = Callable[[Samples], Pixels]


def holds_jpeg_of_ycbcr(tags: Tags) -> bool:
    """Tell whether a file's tiles or strips are JPEG streams, each with all three channels of YCbCr."""
    kind = (tags.get(PHOTOMETRIC_INTERPRETATION), tags.get(COMPRESSION), tags.get(PLANAR_CONFIGURATION, _TOGETHER))
    return kind == (_YCBCR, _JPEG, _TOGETHER)


def is_grey(tags: Tags) -> bool:
    """Tell whether a file's samples are grey, which is the default if it does not say."""
    return tags.get(PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO) in {_WHITE_IS_ZERO, _BLACK_IS_ZERO}


def conversion(tags: Tags, dtype: np.dtype[Any], bands: int, find_largest: Callable[[], float]) -> Conversion | None:
    """Choose the conversion from samples to RGB.

    Args:
        tags: The file's tags.
        dtype: The samples' dtype.
        bands: Number of samples in each pixel.
        find_largest: Finds the largest sample of the whole image; called only for grey of 32 bits or more.

    Returns:
        A function that converts any part of the samples; None if this kind is not supported.
    """
    photometric = tags.get(PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO)
    bits = int(tags.get(BITSPERSAMPLE, (1,))[0])
    if is_grey(tags):
        if bands > 1 and not _is_grey_and_alpha(tags, dtype, bands):
            return None
        return _from_grey(dtype, bits, find_largest, is_inverted=photometric == _WHITE_IS_ZERO)
    if photometric == _PALETTE and dtype in (np.uint8, np.uint16):
        table = (np.array(tags[COLORMAP]) // 256).astype(np.uint8).reshape(3, -1).T
        return lambda samples: table[samples[:, :, 0]]
    mode = {_RGB: "RGB", _CMYK: "CMYK", _LAB: "LAB"}.get(photometric, "")
    if not mode or dtype not in (np.uint8, np.uint16) or bits < 8 or bands < len(mode):
        return None
    raw_mode = mode
    if mode == "RGB" and bands > 3 and tags.get(EXTRASAMPLES, (0,))[0] == _PREMULTIPLIED:
        mode, raw_mode = "RGBA", "RGBa"
    return lambda samples: _by_pillow(_high_bytes(samples[:, :, : len(mode)], bits), mode, raw_mode)


def _is_grey_and_alpha(tags: Tags, dtype: np.dtype[Any], bands: int) -> bool:
    """Tell whether there is one band besides grey, which is dropped; with more, it is unclear which are the colours."""
    return bands == 2 and dtype == np.uint8 and tags.get(EXTRASAMPLES) in {(_UNSPECIFIED,), (_UNASSOCIATED,)}


def _from_grey(dtype: np.dtype[Any], bits: int, find_largest: Callable[[], float], *, is_inverted: bool) -> Conversion:
    flipped = np.uint8(255 * is_inverted)
    if dtype.itemsize == 1:
        step = np.uint8(255 // (2**bits - 1))
        return lambda samples: _grey(flipped ^ (samples[:, :, :1].view(np.uint8) * step))
    if dtype == np.uint16:
        return lambda samples: _grey(flipped ^ to_8_bits(samples[:, :, :1], bits))
    largest = find_largest()
    return lambda samples: _grey(flipped ^ to_8_bits(samples[:, :, :1], 32, largest))


def _high_bytes(samples: Samples, bits: int) -> NDArray[np.uint8]:
    return samples if samples.dtype == np.uint8 else (samples >> (bits - 8)).astype(np.uint8)


def _grey(samples: NDArray[np.uint8]) -> Pixels:
    return np.repeat(samples, 3, axis=2)


def _by_pillow(samples: NDArray[np.uint8], mode: str, raw_mode: str) -> Pixels:
    if mode == "RGB":
        return np.ascontiguousarray(samples)
    picture = Image.frombytes(mode, samples.shape[1::-1], samples.tobytes(), "raw", raw_mode)
    return np.array(picture.convert("RGB"))

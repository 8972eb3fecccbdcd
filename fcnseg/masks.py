"""Encode class maps as bytes and decode them: the only place that does so, so that equal maps give equal bytes."""

import io
import threading
import zlib
from enum import StrEnum
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from fcnseg.errors import MaskError
from fcnseg.types import ClassMap, LabelMap

_ZSTD_LEVEL = 1
_local = threading.local()
# Pillow's raw modes of PNGs that hold ids, and the factor by which Pillow multiplies the ids: it scales grey to 0..255.
_ID_LAYOUTS = {"P": 1, "P;1": 1, "P;2": 1, "P;4": 1, "1": 1, "L;2": 85, "L;4": 17, "L": 1, "I;16B": 1}


class Encoding(StrEnum):
    """How the ids of a class map are written into bytes.

    RAW: row-major without padding, one byte per id, or two in little-endian order.
    ZSTD: the RAW bytes as one Zstandard frame.
    PNG: 8-bit indexed with the classes' colours, or 16-bit greyscale; the index or grey value is the id.
    COCO_RLE: run-length encoding of each class's mask (`rle`): one byte sequence per class, not a single one.
    """

    RAW = "raw"
    ZSTD = "zstd"
    PNG = "png"
    COCO_RLE = "coco_rle"


def encode(class_map: ClassMap, encoding: Encoding, label_map: LabelMap | None) -> bytes:
    """Write a class map into bytes; the same map always gives the same bytes.

    Args:
        class_map: (H, W) uint8 or uint16 ids.
        encoding: The encoding; any but COCO_RLE.
        label_map: Gives the palette of an indexed PNG; None for values that are not ids, which become a greyscale PNG.
    """
    match encoding:
        case Encoding.RAW:
            return _bytes_of(class_map).tobytes()
        case Encoding.ZSTD:
            return _compressor().compress(_bytes_of(class_map))
        case Encoding.PNG:
            return _encode_png(class_map, label_map)
        case Encoding.COCO_RLE:
            raise ValueError("run lengths are no single sequence of bytes; use fcnseg.rle")


def decode(data: bytes, encoding: Encoding, *, shape: tuple[int, int], dtype: DTypeLike) -> ClassMap:
    """Decode a class map of known shape and dtype; the shape bounds the memory used, whatever the bytes claim.

    Args:
        data: What `encode` returned.
        encoding: The encoding of `data`; any but COCO_RLE.
        shape: (H, W).
        dtype: uint8 or uint16.

    Returns:
        (H, W) ids of that dtype, writable.

    Raises:
        MaskError: The bytes do not hold exactly a class map of that shape and dtype.
    """
    if encoding is Encoding.COCO_RLE:
        raise ValueError("run lengths are no single sequence of bytes; use fcnseg.rle")
    dtype = np.dtype(dtype)
    if encoding is Encoding.PNG:
        return _decode_png(data, expected=(shape, dtype))
    expected_bytes = shape[0] * shape[1] * dtype.itemsize
    if encoding is Encoding.ZSTD:
        data = _decompress(data, expected_bytes)
    if len(data) != expected_bytes:
        raise MaskError(
            f"a {encoding} class map of {shape[0]} x {shape[1]} {dtype.name} ids has {expected_bytes} bytes; got"
            f" {len(data)}: ask for it again"
        )
    ids: ClassMap = np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape).astype(dtype)
    return ids


def read_ids(source: str | Path | bytes) -> ClassMap:
    """Read a mask PNG: the palette index or grey value of each pixel is its id.

    Args:
        source: A path, or the file's bytes.

    Returns:
        (H, W) ids, uint16 for 16-bit files and uint8 for others.

    Raises:
        MaskError: The mask cannot be read, or is not an indexed or greyscale PNG.
    """
    if isinstance(source, bytes):
        return _decode_png(source, expected=None)
    try:
        data = Path(source).read_bytes()
    except OSError as error:
        raise MaskError(f"mask {source} cannot be read: {error.strerror}") from error
    try:
        return _decode_png(data, expected=None)
    except MaskError as error:
        raise MaskError(f"{source}: {error}") from error


def _compressor() -> zstandard.ZstdCompressor:
    """Return this thread's compressor: threads cannot share one, and every new one first allocates its memory."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def _bytes_of(class_map: ClassMap) -> memoryview:
    """Return the ids' bytes in little-endian order, without a copy if they are stored in that order already."""
    return np.ascontiguousarray(class_map, class_map.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data


def _decompress(data: bytes, expected_bytes: int) -> bytes:
    try:
        # The frame header's size, not max_output_size, decides how much is allocated: check it first.
        claimed = zstandard.frame_content_size(data)
        if claimed not in {-1, expected_bytes}:
            raise MaskError(f"a zstd class map claims {claimed} bytes where {expected_bytes} fit: ask for it again")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=expected_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MaskError(f"a zstd class map cannot be decompressed ({error}): ask for it again") from error


def _encode_png(class_map: ClassMap, label_map: LabelMap | None) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(class_map))
    if class_map.dtype == np.uint8 and label_map is not None:
        # All 256 entries: with a short palette Pillow packs ids into 1, 2 or 4 bits, which some readers misread.
        picture.putpalette(label_map.palette[:256].tobytes())
    file = io.BytesIO()
    # Masks are patches of equal ids. For 12 smooth classes at 1024 x 2048, zlib's run-length strategy takes 9.9 ms for
    # 59 kB, where its default takes 11.2 ms for 107 kB (level 1) and 33.7 ms for 68 kB (level 6).
    picture.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return file.getvalue()


def _decode_png(data: bytes, expected: tuple[tuple[int, int], np.dtype[np.generic]] | None) -> ClassMap:
    try:
        png = PngImageFile(io.BytesIO(data))
    except Exception as error:  # damaged headers raise anything from struct.error to SyntaxError
        raise MaskError(f"the mask is not a PNG file ({error}); masks are indexed or greyscale PNG") from error
    layout = png.tile[0][3] if png.tile else None
    if layout not in _ID_LAYOUTS:
        raise MaskError(f"the mask is a PNG of mode {png.mode}; ids are read from indexed or greyscale PNG")
    shape = (png.height, png.width)
    dtype = np.dtype(np.uint16 if layout == "I;16B" else np.uint8)
    if expected is not None and (shape, dtype) != expected:
        raise MaskError(
            f"a PNG class map has {shape[0]} x {shape[1]} {dtype.name} ids where {expected[0][0]} x {expected[0][1]}"
            f" {expected[1].name} were expected: ask for it again"
        )
    try:
        png.load()
    except Exception as error:  # damaged pixels raise OSError, ValueError, SyntaxError ...
        raise MaskError(f"the mask PNG is damaged or cut short ({error}); make it again") from error
    ids: NDArray[np.generic] = np.asarray(png)
    scale = _ID_LAYOUTS[layout]
    return (ids if scale == 1 else np.asarray(ids, np.uint8) // scale).astype(dtype)

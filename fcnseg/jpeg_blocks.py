"""Read windows of a TIFF file whose tiles or strips are JPEG streams of YCbCr, decoded by Pillow.

If chroma is subsampled, the libjpeg in rasterio's wheels (9) upsamples it by another rule than libjpeg-turbo in Pillow
and OpenCV, and pixels differ by as much as 90: so GDAL is not used for the blocks of these files.
"""

import io
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import (
    IMAGELENGTH,
    IMAGEWIDTH,
    JPEGTABLES,
    ROWSPERSTRIP,
    STRIPBYTECOUNTS,
    STRIPOFFSETS,
    TILEBYTECOUNTS,
    TILELENGTH,
    TILEOFFSETS,
    TILEWIDTH,
)


class JpegBlocks:
    """The tiles or strips of a TIFF file, each of them a JPEG stream.

    Args:
        path: The file.
        tags: The tags of its first image.
        cache_bytes: Most bytes of decoded blocks to keep.
    """

    def __init__(self, path: Path, tags: Mapping[int, Any], cache_bytes: int) -> None:
        self._path = path
        self._height, self._width = int(tags[IMAGELENGTH]), int(tags[IMAGEWIDTH])
        if TILEOFFSETS in tags:
            self._block = int(tags[TILELENGTH]), int(tags[TILEWIDTH])
            self._places = tags[TILEOFFSETS], tags[TILEBYTECOUNTS]
        else:
            self._block = min(int(tags.get(ROWSPERSTRIP, self._height)), self._height), self._width
            self._places = tags[STRIPOFFSETS], tags[STRIPBYTECOUNTS]
        tables: bytes = tags.get(JPEGTABLES, b"")
        self._tables = tables[:-2]  # without the end of image
        count = max(1, cache_bytes // (3 * self._block[0] * self._block[1]))
        self._decoded = lru_cache(maxsize=count)(self._decode)

    def read(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """Return a window of the pixels as they are stored, (rows, columns, 3) uint8 RGB.

        Raises:
            OSError: A block is damaged or cut short.
            SyntaxError: A block is not a JPEG stream.
        """
        window = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
        for row, into_rows, from_rows in _overlaps(rows, self._block[0]):
            for column, into_columns, from_columns in _overlaps(columns, self._block[1]):
                block = self._decoded(row * -(-self._width // self._block[1]) + column)
                window[into_rows, into_columns] = block[from_rows, from_columns]
        return window

    def _decode(self, number: int) -> NDArray[np.uint8]:
        offsets, counts = self._places
        if counts[number] == 0:  # a sparse block, which was never written
            return np.zeros((*self._block, 3), np.uint8)
        with self._path.open("rb") as file:
            file.seek(offsets[number])
            data = file.read(counts[number])
        if self._tables:  # both have a start-of-image marker
            data = self._tables + data[2:]
        stream = JpegImageFile(io.BytesIO(data))
        row, column = divmod(number, -(-self._width // self._block[1]))
        for found, most, left in (
            (stream.height, self._block[0], self._height - row * self._block[0]),
            (stream.width, self._block[1], self._width - column * self._block[1]),
        ):
            if not min(most, left) <= found <= most:
                raise OSError(f"block {number} has {stream.width}x{stream.height} pixels and not those of the file's")
        return np.asarray(stream.convert("RGB"))


def _overlaps(wanted: slice, block: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield the blocks along an axis that a window overlaps: number, slice of the window, and slice of the block."""
    for number in range(wanted.start // block, -(-wanted.stop // block)):
        first, last = max(wanted.start, number * block), min(wanted.stop, (number + 1) * block)
        yield (
            number,
            slice(first - wanted.start, last - wanted.start),
            slice(first - number * block, last - number * block),
        )

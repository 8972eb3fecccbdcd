"""Read TIFF images that are too large to decode as a whole, window by window.

GDAL, through rasterio (the extra `large`), decodes the tiles or strips of a TIFF file that a window overlaps; only the
window and a cache of blocks are in memory. A window has exactly the pixels that `images.decode` gives for the whole
file. Formats other than TIFF can only be read as a whole.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, PHOTOMETRIC_INTERPRETATION, ImageFileDirectory_v2

from fcnseg import images
from fcnseg.errors import ImageError, ImageTooLargeError, one_line
from fcnseg.gdal import CACHE_BYTES, gdal_environment, gdal_errors_become, import_rasterio
from fcnseg.images import DEFAULT_LIMITS, ImageLimits
from fcnseg.jpeg_blocks import JpegBlocks
from fcnseg.pillow_decoding import turn_upright
from fcnseg.sample_depth import largest_sample
from fcnseg.tiff_parts import require_usual_tiles
from fcnseg.tiff_samples import Pixels, Samples, Tags, conversion, holds_jpeg_of_ycbcr, is_grey
from fcnseg.windows import ArrayImage, Windowed

_TIFF, _BIGTIFF = (b"II*\0", b"MM\0*"), b"II+\0"


@dataclass(frozen=True)
class Georeference:
    """Where on earth an image lies.

    Attributes:
        crs: Coordinate reference system, in rasterio's type.
        transform: Transform from (column, row) to coordinates, in rasterio's type.
    """

    crs: Any
    transform: Any


@contextmanager
def open_windowed(path: Path, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Windowed]:
    """Open an image for reading by windows; only the thread that opened it may read it.

    Args:
        path: The file.
        limits: An image within these limits is decoded as a whole by `images.read`; a larger TIFF file is read in
            windows, and any other larger file is refused.

    Yields:
        The image; a `LargeTiff` if it is read in windows.

    Raises:
        ImageTooLargeError: The image exceeds the limits and cannot be read in windows.
        ImageError: The file cannot be read, is not of an accepted format, or is damaged.
    """
    tags = _tags_beyond(path, limits)
    if tags is None:
        try:
            image = ArrayImage(images.read(path, limits))
        except ImageTooLargeError as error:
            raise _not_in_windows(path, str(error).partition("; ")[0]) from None
        yield image
        return
    try:
        require_usual_tiles(int(tags[IMAGELENGTH]), int(tags[IMAGEWIDTH]), tags)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    rasterio = import_rasterio(ImageTooLargeError, f"{path} is too large to be read whole, and not read in windows")
    # By default GDAL converts CMYK and LAB to RGBA by its own rules; with this prefix it returns the stored samples.
    name = f"GTIFF_RAW:{path.absolute()}"
    with gdal_environment(rasterio), ExitStack() as stack:
        with _told_as_image_errors(path):
            dataset = stack.enter_context(rasterio.open(name, driver="GTiff"))
            tiff = LargeTiff(path, tags, dataset)
        yield tiff


class LargeTiff:
    """A TIFF file that is read window by window; made by `open_windowed`.

    Attributes:
        height: Rows, upright.
        width: Columns, upright.
        georeference: Where on earth the image lies; None if unknown, or if its rows are not stored from the top.
    """

    def __init__(self, path: Path, tags: Tags, dataset: Any) -> None:
        self._path = path
        self._orientation = int(tags.get(ExifTags.Base.Orientation, 1))
        self._read_stored = _stored_reader(path, tags, dataset)
        size = dataset.height, dataset.width
        self.height, self.width = size[::-1] if self._orientation in {5, 6, 7, 8} else size
        located = dataset.crs is not None or not dataset.transform.is_identity
        upright = self._orientation not in range(2, 9)
        self.georeference = Georeference(dataset.crs, dataset.transform) if located and upright else None

    def read(self, rows: slice, columns: slice) -> Pixels:
        """Return the pixels of a window; both slices must have start and stop inside the image.

        Returns:
            (rows, columns, 3) uint8 RGB.

        Raises:
            ImageError: The file is damaged in this window, or cut short.
        """
        if self._orientation in {3, 4, 7, 8}:
            rows = slice(self.height - rows.stop, self.height - rows.start)
        if self._orientation in {2, 3, 6, 7}:
            columns = slice(self.width - columns.stop, self.width - columns.start)
        if self._orientation in {5, 6, 7, 8}:
            rows, columns = columns, rows
        with _told_as_image_errors(self._path):
            return turn_upright(self._read_stored(rows, columns), self._orientation)


def _tags_beyond(path: Path, limits: ImageLimits) -> Tags | None:
    """Return the tags of a TIFF file beyond the limits; None if `images.read` should read or refuse the file."""
    try:
        tags = _read_tags(path)
        beyond = tags is not None and path.stat().st_size > limits.max_bytes
        if tags is not None:
            images.require_within(limits, int(tags[IMAGELENGTH]), int(tags[IMAGEWIDTH]), "")  # they may be texts
    except ImageTooLargeError:
        return tags
    except Exception:  # noqa: BLE001  # damaged headers raise anything; images.read reports the fault
        return None
    return tags if beyond else None


def _read_tags(path: Path) -> Tags | None:
    with path.open("rb") as file:
        header = file.read(8)
        if header[:4] == _BIGTIFF:
            header += file.read(8)
        elif header[:4] not in _TIFF:
            return None
        directory = ImageFileDirectory_v2(header)
        file.seek(directory.next)
        directory.load(file)
    return dict(directory)


def _stored_reader(path: Path, tags: Tags, dataset: Any) -> Callable[[slice, slice], Pixels]:
    """Return a function that reads a window in the stored orientation."""
    if holds_jpeg_of_ycbcr(tags):
        return JpegBlocks(path, tags, CACHE_BYTES).read

    def read(rows: slice, columns: slice) -> Samples:
        bands = dataset.read(window=((rows.start, rows.stop), (columns.start, columns.stop)))
        return np.moveaxis(bands, 0, 2)

    def find_largest() -> float:
        windows = (window.toranges() for _, window in dataset.block_windows(1))
        return max(largest_sample(read(slice(*rows), slice(*columns))[:, :, 0]) for rows, columns in windows)

    dtype = np.dtype(dataset.dtypes[0])
    to_rgb = conversion(tags, dtype, dataset.count, find_largest)
    if to_rgb is None:
        kind = f"photometric interpretation {tags.get(PHOTOMETRIC_INTERPRETATION)}, {dataset.count} x {dtype.name}"
        why = f"{path}: the TIFF image is too large to be read whole, is of {kind}"
        # If the file declares them as RGB, the first three of three or more grey bands are the colours.
        raise _not_in_windows(path, why, " --co photometric=rgb" if is_grey(tags) and dataset.count > 2 else "")
    return lambda rows, columns: to_rgb(read(rows, columns))


def _not_in_windows(path: Path, why: str, more: str = "") -> ImageTooLargeError:
    options = f"--co tiled=yes --co blockxsize=512 --co blockysize=512 --co compress=deflate{more}"
    return ImageTooLargeError(
        f"{why}, and is not read in windows; store it as a tiled TIFF, for example by"
        f" 'rio convert {path.name} large.tif {options}'"
    )


@contextmanager
def _told_as_image_errors(path: Path) -> Iterator[None]:
    def damaged(reason: object) -> ImageError:
        return ImageError(f"{path}: the TIFF image is damaged or cut short ({reason}); store or send it again")

    try:
        with gdal_errors_become(damaged):
            yield
    except ImageError:
        raise
    except Exception as error:  # missing tags or wrong types raise anything
        raise damaged(one_line(error) or type(error).__name__) from error

"""Write masks of images of any size window by window, as tiled TIFF files with overviews."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import UsageError
from fcnseg.files import replacing
from fcnseg.gdal import gdal_environment, gdal_errors_become, import_rasterio
from fcnseg.large_images import Georeference, LargeTiff
from fcnseg.segmenter import Segmenter
from fcnseg.tiled import no_progress, segment_windows
from fcnseg.tiling import Tiling
from fcnseg.types import ClassArea, ClassMap, LabelMap, class_areas, count_ids
from fcnseg.windows import Windowed

_BLOCK = 512
_LAYOUT = {"compress": "deflate", "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "bigtiff": "if_safer"}


class MaskWriter:
    """A mask that is being written; made by `open_mask`.

    Attributes:
        counts: (K,) int64 numbers of pixels of each class written so far.
    """

    def __init__(self, dataset: Any, label_map: LabelMap) -> None:
        self._dataset = dataset
        self._label_map = label_map
        self.counts: NDArray[np.int64] = np.zeros(len(label_map), np.int64)

    @property
    def classes(self) -> tuple[ClassArea, ...]:
        """Classes written with their areas, in the order of their ids."""
        return class_areas(self.counts, self._label_map)

    def write(self, rows: slice, columns: slice, class_map: ClassMap) -> None:
        """Write a window of the class map; windows may come in any order, and must not overlap.

        Args:
            rows: The window's rows, a slice with start and stop.
            columns: The window's columns, a slice with start and stop.
            class_map: (rows, columns) ids of the label map's dtype.
        """
        window = ((rows.start, rows.stop), (columns.start, columns.stop))
        self._dataset.write(class_map, 1, window=window)
        self.counts += count_ids(class_map, len(self.counts))


@contextmanager
def open_mask(
    path: Path, height: int, width: int, label_map: LabelMap, georeference: Georeference | None = None
) -> Iterator[MaskWriter]:
    """Write the mask of a large image: the pixel value is the id, the palette has the classes' colours.

    The file is a tiled TIFF (deflate, 512 x 512), BigTIFF if it may need to be, with an 8-bit palette up to 256
    classes, else 16-bit grey. Each overview, down to 512 pixels, has half the size and takes every second pixel's id:
    ids are never interpolated. The complete file appears under its name when the block ends without an error.

    Args:
        path: The mask's path, a .tif file.
        height: Rows.
        width: Columns.
        label_map: The classes.
        georeference: Where on earth the image lies.

    Yields:
        The writer for windows; only the thread that opened it may use it.

    Raises:
        UsageError: `path` is a folder, one of its parents is not a folder, or rasterio is not installed.
        OSError: The file cannot be written, for example because the disk is full.
    """
    rasterio = import_rasterio(UsageError, f"the tiled mask {path} cannot be written")
    dtype = label_map.id_dtype
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": dtype.name, **_LAYOUT}
    profile["photometric"] = "palette" if dtype.itemsize == 1 else "minisblack"
    if georeference is not None:
        profile |= {"crs": georeference.crs, "transform": georeference.transform}

    def complaint(reason: str) -> OSError:
        return OSError(f"mask {path} cannot be written: {reason}")

    with replacing(path) as temporary, gdal_environment(rasterio), gdal_errors_become(complaint):
        with rasterio.open(temporary, "w", **profile) as dataset:
            if dtype.itemsize == 1:
                dataset.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(label_map.palette.tolist())})
            writer = MaskWriter(dataset, label_map)
            yield writer
        with rasterio.open(temporary, "r+") as dataset:
            dataset.build_overviews(_factors(max(height, width)), rasterio.enums.Resampling.nearest)
        _require_written(temporary, rasterio, writer.counts)


def segment_to_mask(
    segmenter: Segmenter,
    image: Windowed,
    tiling: Tiling,
    path: Path,
    progress: Callable[[int, int], None] = no_progress,
    at_a_time: int = 1,
) -> tuple[ClassArea, ...]:
    """Segment an image tile by tile into the mask of a large image; see `open_mask`.

    Args:
        segmenter: The model.
        image: The image.
        tiling: From `plan_tiles` for this model and this image's size.
        path: The mask's path, a .tif file.
        progress: Called with the number of tiles done and the number of all tiles.
        at_a_time: Number of concurrent runs, of one tile each.

    Returns:
        Classes present with their areas, in the order of their ids.

    Raises:
        ImageError: The image cannot be read.
        UsageError: `path` is a folder, one of its parents is not a folder, or rasterio is not installed.
        OSError: The mask cannot be written.
    """
    georeference = image.georeference if isinstance(image, LargeTiff) else None
    with open_mask(path, image.height, image.width, segmenter.info.label_map, georeference) as mask:
        for window in segment_windows(segmenter, image, tiling, progress=progress, at_a_time=at_a_time):
            mask.write(window.rows, window.columns, window.class_map)
    return mask.classes


def _factors(size: int) -> list[int]:
    """Return the overviews' reduction factors; the last overview is at most a block in size."""
    factors = [2]
    while size / factors[-1] > _BLOCK:
        factors.append(2 * factors[-1])
    return factors if size > _BLOCK else []


def _require_written(path: Path, rasterio: ModuleType, counts: NDArray[np.int64]) -> None:
    """Read a mask back: GDAL defers writes, and does not report an error if the disk is full by then.

    Raises:
        OSError: The file does not hold what was written.
    """
    with rasterio.open(path) as dataset:
        levels = len(dataset.overviews(1))
        found = sum(count_ids(block, len(counts)) for block in _read_blocks(dataset))
    if not np.array_equal(found, counts):
        raise OSError(f"{path} does not hold what was written; is the disk full?")
    for level in range(levels):
        with rasterio.open(path, overview_level=level) as dataset:
            for _ in _read_blocks(dataset):
                pass  # a truncated file raises


def _read_blocks(dataset: Any) -> Iterator[ClassMap]:
    for _, window in dataset.block_windows(1):
        yield dataset.read(1, window=window)

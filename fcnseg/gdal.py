"""GDAL through rasterio, the extra `large`: imported lazily, and restricted to the given files and memory."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from fcnseg.errors import FcnsegError, one_line

CACHE_BYTES = 2**28
"""GDAL's cache for decoded blocks: in a file of strips, every tile of a row needs part of the same strips."""

_OPTIONS = {  # GDAL then neither reads nor writes other files
    "GDAL_CACHEMAX": CACHE_BYTES,
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
}


def import_rasterio(complaint: type[FcnsegError], purpose: str) -> ModuleType:
    """Import rasterio.

    Args:
        complaint: The error to raise if rasterio is missing.
        purpose: What rasterio is needed for, as the beginning of the message.
    """
    try:
        import rasterio  # noqa: PLC0415  # in an extra
    except ImportError as error:
        raise complaint(f"{purpose} without rasterio; install it with: pip install 'fcnseg[large]'") from error
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # failures raise; do not report them twice
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio  # type: ignore[no-any-return]


@contextmanager
def gdal_environment(rasterio: ModuleType) -> Iterator[None]:
    """Set GDAL's options for the calls that this thread makes in the block."""
    with rasterio.Env(**_OPTIONS):
        yield


@contextmanager
def gdal_errors_become(make: Callable[[str], Exception]) -> Iterator[None]:
    """Turn errors that rasterio raises in the block into the error that `make` returns for the reason."""
    from rasterio._err import CPLE_BaseError  # noqa: PLC0415  # in an extra; rasterio does not wrap all of GDAL's errors
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        raise make(one_line(error.__cause__ or error, 200)) from error

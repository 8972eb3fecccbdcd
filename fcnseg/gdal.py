"""GDAL through rasterio, the extra `large`: imported where needed, and kept to the files and memory it is given."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from fcnseg.errors import FcnsegError, one_line

CACHE_BYTES = 2**28
"""Decoded blocks that GDAL keeps: those of a strip file's rows, of which each tile of a row wants a part."""

_OPTIONS = {  # it looks at no other files and leaves none
    "GDAL_CACHEMAX": CACHE_BYTES,
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
}


def import_rasterio(complaint: type[FcnsegError], purpose: str) -> ModuleType:
    """Import rasterio.

    Args:
        complaint: What to raise where it is missing.
        purpose: What it is needed for, as the beginning of the message.
    """
    try:
        import rasterio  # noqa: PLC0415  # in an extra
    except ImportError as error:
        raise complaint(f"{purpose} without rasterio; install it with: pip install 'fcnseg[large]'") from error
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what fails raises; it would be told twice
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio  # type: ignore[no-any-return]


@contextmanager
def gdal_environment(rasterio: ModuleType) -> Iterator[None]:
    """Set GDAL's options for the calls that this thread makes in the block."""
    with rasterio.Env(**_OPTIONS):
        yield


@contextmanager
def gdal_errors_become(make: Callable[[str], Exception]) -> Iterator[None]:
    """Turn what rasterio raises in the block into the error that `make` makes of the reason."""
    from rasterio._err import CPLE_BaseError  # noqa: PLC0415  # in an extra; some of GDAL's errors come bare
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        raise make(one_line(error.__cause__ or error, 200)) from error

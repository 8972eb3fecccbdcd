"""Control how the C library's allocator handles memory that the process frees."""

import ctypes
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)
_LARGEST = 2**31 - 1
_LARGEST_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory(most: int | None = None) -> None:
    """Make glibc keep freed memory for reuse; without glibc, change nothing.

    By default glibc returns freed blocks of hundreds of kilobytes to the system at once, and later allocates them again
    page by page, each page cleared: this takes a fifth of a MobileNet's training step on the CPU, and a third of the
    time in which a server receives a raw image and answers with its mask.

    Args:
        most: About how many freed bytes to keep, for a long-lived process: more than this, and freed blocks above
            32 MiB, are returned. None keeps everything to the end; peak memory stays about the same.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return
    if most is None:
        mallopt(_MMAP_MAX, 0)
    else:
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_TRIM_THRESHOLD, _LARGEST if most is None else min(most, _LARGEST))


def release_freed_memory() -> None:
    """Make glibc, if present, return freed memory to the system; takes some milliseconds."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(function: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None
    return found

"""How the C library's allocator treats the memory that a process frees."""

import ctypes
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)
_LARGEST = 2**31 - 1
_LARGEST_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory(most: int | None = None) -> None:
    """Let glibc keep what this process frees for later, where it has glibc; elsewhere, change nothing.

    By default glibc gives freed blocks of hundreds of kilobytes back to the system at once and gets them anew, page by
    page, each page cleared: a fifth of a MobileNet's training step on the CPU, and a third of what a server
    takes to receive a raw image and to answer with its mask.

    Args:
        most: About how many bytes to keep, for a process that lives long: blocks beyond 32 MiB are given back, and
            what is free beyond this. None keeps everything to the end; the peak of memory stays about the same.
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
    """Let glibc give back to the system what this process has freed, where it has glibc; takes some milliseconds."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(function: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None
    return found

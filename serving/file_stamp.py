"""What tells a file from what it was."""

from pathlib import Path
from typing import TypeAlias

FileStamp: TypeAlias = tuple[int, int, int] | None
"""Where a file is on the disk, its bytes, and when it was written in nanoseconds; None where there is none."""


def stamp_of(path: Path) -> FileStamp:
    """Return a file's stamp, which changes when the file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def access_of(path: Path) -> int | None:
    """Return when a file, its owner or its mode changed last, in nanoseconds; None where there is none."""
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return None

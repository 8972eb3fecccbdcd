"""A lock that lets only one program at a time write into a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fcnseg.errors import UsageError

_LOCK = ".fcnseg.lock"


@contextmanager
def only_one(folder: Path, doing: str) -> Iterator[None]:
    """Lock a folder against other programs while the block runs; the folder is created if it is missing.

    Args:
        folder: The folder.
        doing: What this program does there, such as `segmenting`.

    Raises:
        UsageError: Another program holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another program is {doing} into {folder}; wait for it, or name another folder") from None
    try:
        yield
    finally:
        lock.release()

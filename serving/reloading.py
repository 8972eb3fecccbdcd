"""Files that are read again when they change, so that a server need not be restarted for them."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from fcnseg.errors import FcnsegError
from serving.file_stamp import FileStamp, stamp_of

_log = logging.getLogger(__name__)

_PAUSE_S = 1.0  # between tries of files that have not changed

_Value = TypeVar("_Value")


class Reloaded(Generic[_Value]):
    """A value read from files, which is read again when they change; threads may share it.

    If changed files are unusable, that is logged once, and the previous value stays. They are tried again even without
    a change, since the cause may have been their permissions, or too many open files.

    Args:
        paths: The files.
        read: Reads them.

    Raises:
        FcnsegError: They are unusable from the start; the message is that of `read`.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], _Value]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._changing = threading.Lock()
        self._stamps = self._look()  # before reading: a change in between is noticed next time
        self._value = read()
        self._tried, self._tried_at = self._stamps, 0.0
        self._told = ""

    def get(self) -> _Value:
        """Return the current value."""
        with self._changing:
            stamps = self._look()
            if stamps != self._stamps and (stamps != self._tried or time.monotonic() - self._tried_at > _PAUSE_S):
                self._read_again(stamps)
            return self._value

    def _read_again(self, stamps: tuple[FileStamp, ...]) -> None:
        if stamps != self._tried:
            self._told = ""
        self._tried, self._tried_at = stamps, time.monotonic()
        try:
            self._value = self._read()
        except FcnsegError as error:
            if str(error) != self._told:
                _log.warning("the files read before stay in use: %s", error)
            self._told = str(error)
        else:
            self._stamps = stamps
            _log.info("read again: %s", ", ".join(map(str, self._paths)))

    def _look(self) -> tuple[FileStamp, ...]:
        return tuple(stamp_of(path) for path in self._paths)

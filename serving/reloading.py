"""Files that are read again when they change, so that a server need not be restarted for them."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from fcnseg.errors import FcnsegError
from serving.file_stamp import FileStamp, stamp_of

_log = logging.getLogger(__name__)

_Value = TypeVar("_Value")


class Reloaded(Generic[_Value]):
    """What some files say, and says again when they have changed; threads may share it.

    Files that have become unusable are logged once, and what they said before stays.

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
        self._stamps = self._look()  # before they are read: a change in between is seen the next time
        self._value = read()

    def get(self) -> _Value:
        """Return what the files say now."""
        with self._changing:
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._value = self._read()
                except FcnsegError as error:
                    _log.warning("what was read before stays in use: %s", error)
                else:
                    _log.info("read again: %s", ", ".join(map(str, self._paths)))
            return self._value

    def _look(self) -> tuple[FileStamp, ...]:
        return tuple(stamp_of(path) for path in self._paths)

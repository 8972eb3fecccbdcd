"""A memory budget for the images in progress, granted in the images' order."""

import threading

from fcnseg.errors import FcnsegError


class OrderedMemory:
    """A budget of bytes that images take in their order, so that no image waits for memory that a later image holds.

    Args:
        total: Bytes in all; an image that needs more waits until no other image holds memory.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._next = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, turn: int, count: int) -> None:
        """Wait until all earlier turns have taken their bytes and there is room, then take bytes.

        Args:
            turn: 0, 1, 2, ... Every turn must be taken, if only for 0 bytes.
            count: Number of bytes.

        Raises:
            FcnsegError: The memory was closed meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (turn == self._next and self._has_room(count)))
            if self._closed:
                raise FcnsegError("the job was ended")
            self._next += 1
            self._taken += count
            self._changed.notify_all()

    def give_back(self, count: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._taken -= count
            self._changed.notify_all()

    def close(self) -> None:
        """Make every waiting `take` raise an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_room(self, count: int) -> bool:
        return self._taken == 0 or self._taken + count <= self._total

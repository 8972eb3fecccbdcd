"""Memory for the images under way, given in the images' order."""

import threading

from fcnseg.errors import FcnsegError


class OrderedMemory:
    """A number of bytes that images take in their order: nothing waits for memory that a later image holds.

    Args:
        total: Bytes in all; an image that needs more has to wait until it is alone.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._next = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, turn: int, count: int) -> None:
        """Take bytes when all earlier turns have taken theirs and there is room.

        Args:
            turn: 0, 1, 2, ... Every turn must come, if only for 0 bytes.
            count: How many bytes.

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
        """End every `take` that waits, with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_room(self, count: int) -> bool:
        return self._taken == 0 or self._taken + count <= self._total

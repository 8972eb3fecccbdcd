"""A fair semaphore for runs of a model; a large image may take several of its turns, or all."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A semaphore whose turns threads take first come, first served, several at once if needed.

    Args:
        total: Number of turns.
    """

    def __init__(self, total: int) -> None:
        self._left = total
        self._first = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, count: int) -> Iterator[None]:
        """Wait for `count` turns and hold them while the block runs; `count` is at most the total."""
        with self._first, self._changed:  # a thread that waits for several turns is not overtaken by later ones
            self._changed.wait_for(lambda: self._left >= count)
            self._left -= count
        try:
            yield
        finally:
            with self._changed:
                self._left += count
                self._changed.notify_all()

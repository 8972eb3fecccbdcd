"""Turns at a model: some of them at a time, which one image may take all at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A number of turns that threads take, first come, first served.

    Args:
        total: How many there are.
    """

    def __init__(self, total: int) -> None:
        self._left = total
        self._first = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, count: int) -> Iterator[None]:
        """Have so many turns while the block runs, as soon as they are there; `count` is at most all."""
        with self._first, self._changed:  # who waits for several is not overtaken by those who want one
            self._changed.wait_for(lambda: self._left >= count)
            self._left -= count
        try:
            yield
        finally:
            with self._changed:
                self._left += count
                self._changed.notify_all()

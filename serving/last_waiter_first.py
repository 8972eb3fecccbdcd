"""A condition variable that wakes the thread which began to wait last."""

import threading
from collections.abc import Callable


class LastWaiterFirst:
    """Like a `threading.Condition`, but it wakes the thread that began to wait last, not first (LIFO).

    Among worker threads that is the one that worked last, whose data is still in its core's caches.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[threading.Condition] = []

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until another thread notifies this one, or for a time; the lock must be held."""
        own = threading.Condition(self._lock)
        self._waiting.append(own)
        own.wait(timeout_s)
        if own in self._waiting:  # nobody has notified it
            self._waiting.remove(own)

    def wait_for(self, predicate: Callable[[], object]) -> None:
        """Wait until something holds; the lock must be held."""
        while not predicate():
            self.wait()

    def notify(self) -> None:
        """Wake the thread that began to wait last, where one waits; the lock must be held."""
        if self._waiting:
            self._waiting.pop().notify()

    def notify_all(self) -> None:
        """Wake all that wait; the lock must be held."""
        while self._waiting:
            self.notify()

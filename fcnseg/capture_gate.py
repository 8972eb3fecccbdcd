"""Keeps other threads of the process from using CUDA while a CUDA graph is captured.

onnxruntime captures in CUDA's global mode, in which a copy or an allocation by any thread, for any model, invalidates
the capture. So this is a readers-writer lock: all other work on CUDA shares it, and a capture holds it alone.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureGate:
    """A readers-writer lock that prefers writers: many threads share it, or one holds it alone."""

    def __init__(self) -> None:
        self._sharing = 0
        self._alone = 0  # those that hold it alone or wait to
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Share the gate with others; not reentrant."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the gate alone; not reentrant."""
        with self._changed:
            self._alone += 1
        try:
            with self._turn:
                with self._changed:
                    self._changed.wait_for(lambda: not self._sharing)
                yield
        finally:
            with self._changed:
                self._alone -= 1
                self._changed.notify_all()


GATE = CaptureGate()

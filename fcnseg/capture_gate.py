"""Keeps the rest of a process from CUDA while a graph is recorded.

onnxruntime records in CUDA's global mode, in which a copy or an allocation by any thread, for whatever model, spoils
the recording. So work on CUDA shares the gate, and a recording has it alone.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureGate:
    """Lets in many that share it, or one alone; who wants it alone is not kept waiting by those who come after."""

    def __init__(self) -> None:
        self._sharing = 0
        self._alone = 0  # that has it or waits for it
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Be in together with others; not to be entered by a thread that is in already."""
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
        """Be in without others; not to be entered by a thread that is in already."""
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

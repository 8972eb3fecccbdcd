"""CUDA graphs: a run of a frequent input shape is recorded once, and replayed by one call.

A session that records has one input shape and no branch (see `specialised_model`): all that a model computes from sizes
is then constant, and no node is left for the CPU. Runs of rare shapes are left to ordinary sessions.
"""

import logging
import mmap
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias, TypeVar

import onnxruntime

from fcnseg.bound_run import Arrays, BoundRun, Images, Shape, open_copies
from fcnseg.capture_gate import GATE
from fcnseg.cuda_driver import free_share
from fcnseg.errors import DeviceError, one_line
from fcnseg.model_file import CONFIDENCE, OUTPUTS
from fcnseg.specialised_model import write_specialised

OpenSession: TypeAlias = Callable[[Path, Shape, int | None], onnxruntime.InferenceSession]
"""Opens a model file for one shape, with CUDA graphs enabled, in the stream of a handle where there is one."""
_Key: TypeAlias = tuple[Shape, bool]
_Made = TypeVar("_Made")

_log = logging.getLogger(__name__)
_SETS = 3
"""Sets of buffers: while one run is on the device, the next is queued, and the third is filled or read."""
_FIRST_FIT = (1, 30)
"""The first onnxruntime in which a recording keeps the host memory that it copies from. Before, another run could reuse
that memory, and a replay used that run's addresses (https://github.com/microsoft/onnxruntime/pull/32121)."""
_RUNS_TO_TAKE_A_PLACE = 8
_MOST_SHAPES_COUNTED = 1000
_SPARED = 0.5
"""Share of the device's memory that must be free; it is left to ordinary runs and other models."""


class CudaGraphs:
    """The recorded runs of a model, up to a number of shapes; threads may share it.

    While there is room, a shape is recorded when it first comes. After that, a shape that has come eight times replaces
    the least recently used one, if that has not come since the first of these eight: alternating shapes do not replace
    each other. A shape that cannot be recorded, for lack of memory for example, is logged and not tried again.

    Args:
        path: The model file; it is kept open, so that the path may be given to another file.
        device: `cuda:N`. On `cpu` nothing is recorded, and the answers are the same.
        limit: Most shapes that are kept; the same shape with and without confidences counts as two.
        open_session: Opens a file.
        sparing: Whether a shape is recorded only while half of the device's memory is free.
    """

    def __init__(
        self, path: Path, device: str, limit: int, open_session: OpenSession, *, sparing: bool = False
    ) -> None:
        self._path, self._device, self._limit, self._open_session = path, device, limit, open_session
        self._sparing = sparing
        self._copies = open_copies(device)
        with GATE.shared():
            self._stream = self._copies.lend_stream(self) if self._copies else None
        with path.open("rb") as file:
            self._model = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._kept: dict[_Key, _RecordedRun] = {}
        self._runs = 0
        self._seen: dict[_Key, tuple[int, int]] = {}  # shapes without a recording: how often, and since which run
        self._unfit: set[_Key] = set()
        self._recording = threading.Lock()  # held for as long as a shape is opened and recorded
        self._changing = threading.Lock()  # held for a moment, within the gate and never around it
        # A recording belongs to the thread that made it.
        self._thread = ThreadPoolExecutor(1, "cuda-graphs")

    @property
    def shapes(self) -> list[_Key]:
        """The recorded shapes, without and with confidences, the most recently used at the end."""
        with self._changing:
            return sorted(self._kept, key=lambda key: self._kept[key].last_run)

    def prove(self, shape: Shape) -> None:
        """Record a shape and drop it, to find out whether the model can be recorded.

        Raises:
            DeviceError: It cannot be recorded, or not by this onnxruntime.
        """
        if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < _FIRST_FIT:
            raise DeviceError(
                f"CUDA graphs need onnxruntime {'.'.join(map(str, _FIRST_FIT))} or later, since one before may replay"
                f" with another run's addresses; this is {onnxruntime.__version__}"
            )
        key = (shape, False)
        self._keep(key)
        with GATE.alone(), self._changing:
            del self._kept[key]  # frees device memory, which must happen within the gate

    def run(self, images: Images, outputs: Sequence[str]) -> Arrays | None:
        """Replay the recorded run of the images' shape, which is recorded first if it is due.

        Args:
            images: The batch.
            outputs: Which outputs are wanted, by name.

        Returns:
            These outputs, as new arrays; None if the shape is not recorded.
        """
        height, width, _ = images[0].shape
        key = ((len(images), height, width), CONFIDENCE in outputs)
        if self._is_due(key):
            try:
                self._keep(key)
            except DeviceError as error:
                _log.warning("%s; it is answered without", error)
                with self._changing:
                    self._unfit.add(key)
        with GATE.shared():
            return self._replay(key, images, outputs)

    def _is_due(self, key: _Key) -> bool:
        """Count a use of a shape, and tell whether to record it now."""
        with self._changing:
            self._runs += 1
            if (recorded := self._kept.get(key)) is not None:
                recorded.last_run = self._runs
            if recorded is not None or key in self._unfit:
                return False
            if len(self._kept) < self._limit:
                return True
            if len(self._seen) >= _MOST_SHAPES_COUNTED:
                self._seen.clear()
                self._unfit.clear()
            times, since = self._seen.pop(key, (0, self._runs))
            if times + 1 < _RUNS_TO_TAKE_A_PLACE:
                self._seen[key] = times + 1, since
                return False
            return self._kept[self._used_longest_ago()].last_run < since

    def _used_longest_ago(self) -> _Key:
        """Return the least recently used recorded shape; to be called within `_changing`."""
        return min(self._kept, key=lambda key: self._kept[key].last_run)

    def _keep(self, key: _Key) -> None:
        with self._recording:
            if key in self.shapes:  # another thread was faster
                return
            session = self._open(key)
            with GATE.alone():
                with self._changing:
                    if len(self._kept) >= self._limit:
                        del self._kept[self._used_longest_ago()]
                failure = None
                try:
                    recorded = self._record(session, key)
                except DeviceError as error:
                    failure = DeviceError(str(error))
                if failure is not None:
                    del session  # frees it within the gate; the error's frames, which held it too, are gone
                    raise failure
                with self._changing:
                    recorded.last_run = self._runs
                    self._kept[key] = recorded

    def _replay(self, key: _Key, images: Images, outputs: Sequence[str]) -> Arrays | None:
        with self._changing:
            recorded = self._kept.get(key)
        return None if recorded is None else recorded.run(images, self._thread, outputs)

    def _open(self, key: _Key) -> onnxruntime.InferenceSession:
        shape, confidence = key

        def open_specialised() -> onnxruntime.InferenceSession:
            with GATE.shared(), tempfile.TemporaryDirectory(prefix="fcnseg-") as folder:
                if self._sparing and free_share(self._device) < _SPARED:
                    raise MemoryError(f"more than {1 - _SPARED:.0%} of its memory is taken")
                path = Path(folder) / self._path.name
                write_specialised(self._model, path, confidence=confidence)
                return self._open_session(path, shape, self._stream)

        return self._telling(shape, open_specialised)

    def _record(self, session: onnxruntime.InferenceSession, key: _Key) -> "_RecordedRun":
        shape, confidence = key
        outputs = OUTPUTS if confidence else OUTPUTS[:2]

        def record() -> _RecordedRun:
            make = partial(BoundRun, session, self._device, self._copies, shape, outputs, stream=self._stream)
            return self._thread.submit(_RecordedRun, make).result()

        try:
            return self._telling(shape, record)
        finally:
            self._thread.submit(int).result()  # until its next task the thread may still hold the session

    def _telling(self, shape: Shape, step: Callable[[], _Made]) -> _Made:
        """Return the result of a step, or raise a DeviceError in one line if the shape cannot be recorded.

        The reason may be a full folder, memory, or the graph. This is not a context manager: from Python 3.12 on, a
        generator's frame that an exception has left refers to its caller's frame, and would keep the session alive.
        """
        try:
            return step()
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            count, height, width = shape
            reason = one_line(error)
            raise DeviceError(
                f"device {self._device} cannot record a run of {self._path} on {count} images of {height}x{width}:"
                f" {reason}"
            ) from error


class _RecordedRun:
    """A session for one shape, and sets of buffers with a recorded run each.

    Attributes:
        last_run: The number of the model's run in which it was last used.
    """

    last_run = 0

    def __init__(self, make: Callable[..., BoundRun]) -> None:
        self._free: SimpleQueue[BoundRun] = SimpleQueue()
        for number in range(_SETS):
            self._free.put(make(number=number))

    def run(self, images: Images, thread: Executor, outputs: Sequence[str]) -> Arrays:
        """Run on a free set of buffers, or wait for one; `thread` is the one that recorded."""
        buffers = self._free.get()
        try:
            return buffers.run(images, thread, outputs)
        finally:
            self._free.put(buffers)

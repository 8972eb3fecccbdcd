"""CUDA graphs: runs of an input shape that comes often are recorded once and replayed by one call each.

A session that records has one input shape and no branch (see `specialised_model`): what a model computes from sizes is
then computed when it is opened, and no node is left for the CPU. Shapes that come rarely are no business of this file.
"""

import logging
import mmap
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fcnseg.capture_gate import GATE
from fcnseg.cuda_copies import CudaCopies
from fcnseg.errors import DeviceError
from fcnseg.model_file import OUTPUTS
from fcnseg.specialised_model import write_specialised

Shape: TypeAlias = tuple[int, int, int]
"""N, H and W."""
OpenSession: TypeAlias = Callable[[Path, Shape], onnxruntime.InferenceSession]
Arrays: TypeAlias = Sequence[NDArray[Any]]
_Key: TypeAlias = tuple[Shape, bool]

_log = logging.getLogger(__name__)
_GRAPH_ID = "gpu_graph_id"  # a run option: what a recording is called; -1 runs without
_UNRECORDED = -1
_RUNS_AHEAD = 2
"""In which onnxruntime allocates what a run takes; it cannot while it records."""
_PATTERN = 251
"""A prime, so that neither rows nor images repeat each other."""
_MOST_APART = 0.01
_SETS = 3
"""Of buffers: one is filled and one is read while another's run is on the device."""
_RUNS_TO_TAKE_A_PLACE = 8
_MOST_SHAPES_COUNTED = 1000


class CudaGraphs:
    """The recorded runs of a model, by shape, up to a number of shapes; threads may share it.

    While there is room a shape is recorded when it first comes. After that it takes the place of the one that has not
    been used for longest, once it has come eight times. A shape that cannot be recorded, for want of memory say, is
    told of in the log, and not tried again.

    Args:
        path: The model file; it is kept open, and may be replaced by another.
        device: `cuda:N`. On `cpu` nothing is recorded, and the answers are the same.
        limit: How many shapes are kept at most, with and without confidences counted apart.
        open_session: Opens a model file for one shape, with CUDA graphs enabled.
    """

    def __init__(self, path: Path, device: str, limit: int, open_session: OpenSession) -> None:
        self._path, self._device, self._limit, self._open_session = path, device, limit, open_session
        with path.open("rb") as file:
            self._model = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._kept: OrderedDict[_Key, _RecordedRun] = OrderedDict()
        self._seen: Counter[_Key] = Counter()
        self._unfit: set[_Key] = set()
        self._recording = threading.Lock()  # held for as long as a shape is opened and recorded
        self._changing = threading.Lock()  # held for a moment, within the gate and never around it
        # A recording belongs to the thread that made it.
        self._thread = ThreadPoolExecutor(1, "cuda-graphs")

    @property
    def shapes(self) -> list[_Key]:
        """The shapes that are recorded, without and with confidences, the one used last at the end."""
        with self._changing:
            return list(self._kept)

    def prove(self, shape: Shape) -> None:
        """Record a shape and drop it, to tell whether the model can be.

        Raises:
            DeviceError: It cannot be recorded.
        """
        key = (shape, False)
        session = self._open(key)
        with GATE.alone():
            self._record(session, key)
            del session  # frees device memory, which is to be done within the gate

    def run(self, images: NDArray[np.uint8], *, confidence: bool) -> Arrays | None:
        """Answer by the recorded run of the images' shape.

        Args:
            images: (N, H, W, 3) uint8 RGB.
            confidence: Whether to compute confidences too.

        Returns:
            Class maps, heatmaps and, if asked for, confidences, as new arrays; None where the shape has no recording
            and gets none now.
        """
        count, height, width, _ = images.shape
        key = ((count, height, width), confidence)
        if self._is_due(key):
            try:
                self._keep(key)
            except DeviceError as error:
                _log.warning("%s; it is answered without", error)
                with self._changing:
                    self._unfit.add(key)
        with GATE.shared():
            return self._replay(key, images)

    def _is_due(self, key: _Key) -> bool:
        """Whether a shape is to be recorded now."""
        with self._changing:
            if key in self._kept or key in self._unfit:
                return False
            if len(self._kept) < self._limit:
                return True
            if len(self._seen) >= _MOST_SHAPES_COUNTED:
                self._seen.clear()
                self._unfit.clear()
            self._seen[key] += 1
            return self._seen[key] >= _RUNS_TO_TAKE_A_PLACE

    def _keep(self, key: _Key) -> None:
        with self._recording:
            if key in self.shapes:  # another thread was faster
                return
            session = self._open(key)
            with GATE.alone():
                with self._changing:
                    if len(self._kept) >= self._limit:
                        self._kept.popitem(last=False)
                failure = None
                try:
                    recorded = self._record(session, key)
                except DeviceError as error:
                    failure = DeviceError(str(error))
                if failure is not None:
                    del session  # within the gate; the frames of the error, which are gone, held it too
                    raise failure
                with self._changing:
                    self._kept[key] = recorded
                    del self._seen[key]

    def _replay(self, key: _Key, images: NDArray[np.uint8]) -> Arrays | None:
        with self._changing:
            recorded = self._kept.get(key)
            if recorded is None:
                return None
            self._kept.move_to_end(key)
        return recorded.run(images, self._thread)

    def _open(self, key: _Key) -> onnxruntime.InferenceSession:
        shape, confidence = key
        with self._telling(shape), GATE.shared(), tempfile.TemporaryDirectory(prefix="fcnseg-") as folder:
            path = Path(folder) / self._path.name
            write_specialised(self._model, path, confidence=confidence)
            return self._open_session(path, shape)

    def _record(self, session: onnxruntime.InferenceSession, key: _Key) -> "_RecordedRun":
        shape, confidence = key
        outputs = OUTPUTS if confidence else OUTPUTS[:2]
        with self._telling(shape):
            return self._thread.submit(_RecordedRun, session, self._device, shape, outputs).result()

    @contextmanager
    def _telling(self, shape: Shape) -> Iterator[None]:
        """Tell in one line that a shape cannot be recorded, for whatever reason: a full folder, memory, the graph."""
        try:
            yield
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            count, height, width = shape
            reason = " ".join(str(error).split())
            raise DeviceError(
                f"device {self._device} cannot record a run of {self._path} on {count} images of {height}x{width}:"
                f" {reason}; leave CUDA graphs out"
            ) from error


class _RecordedRun:
    """A session of one shape, and sets of buffers with the run that was recorded on each."""

    def __init__(
        self, session: onnxruntime.InferenceSession, device: str, shape: Shape, outputs: Sequence[str]
    ) -> None:
        self._free: SimpleQueue[BoundRun] = SimpleQueue()
        for number in range(_SETS):
            self._free.put(BoundRun(session, device, shape, outputs, number))

    def run(self, images: NDArray[np.uint8], thread: Executor) -> Arrays:
        """Fill a set of buffers, replay its run in the thread that recorded it, and copy the answers out."""
        buffers = self._free.get()
        try:
            buffers.fill(images)
            thread.submit(buffers.replay).result()
            return buffers.read()
        finally:
            self._free.put(buffers)


class BoundRun:
    """A run whose input and outputs are device memory at addresses that stay; it is recorded and tried out at once.

    Args:
        session: The session; where it was opened with CUDA graphs, the run is recorded.
        device: `cuda:N` or `cpu`, as the session's.
        shape: The images'.
        outputs: Which outputs are wanted, by name.
        number: What tells this run from others of the session.

    Raises:
        DeviceError: A replay answers otherwise than a run that is not recorded.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, device: str, shape: Shape, outputs: Sequence[str], number: int = 0
    ) -> None:
        kind, _, index = device.partition(":")
        place = (kind, int(index or 0))
        self._copies = None if kind == "cpu" else CudaCopies(place[1])
        self._session = session
        self._options = _run_options(number)
        self._image = onnxruntime.OrtValue.ortvalue_from_shape_and_type((*shape, 3), np.uint8, *place)
        self._kinds: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("image", self._image)
        for name in outputs:
            self._binding.bind_output(name, *place)
        self.fill(np.zeros((*shape, 3), np.uint8))
        for _ in range(_RUNS_AHEAD):
            session.run_with_iobinding(self._binding, _run_options(_UNRECORDED))
        self.outputs = self._binding.get_outputs()
        self._kinds = [(array.shape, array.dtype) for array in (value.numpy() for value in self.outputs)]
        for name, value in zip(outputs, self.outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self.replay()
        self._try_out(shape)

    def _try_out(self, shape: Shape) -> None:
        """Check on other images than those of the recording that a replay reads its input and writes its outputs."""
        self.fill(np.resize(np.arange(_PATTERN, dtype=np.uint8), (*shape, 3)))
        self.replay()
        replayed = self.read()
        self._session.run_with_iobinding(self._binding, _run_options(_UNRECORDED))
        for name, ours, plain in zip(OUTPUTS, replayed, self.read(), strict=False):
            gap = np.abs(ours.astype(np.float32) - plain.astype(np.float32))
            share = float(np.mean(gap > _MOST_APART * (float(np.ptp(plain)) or 1)))
            if share > _MOST_APART:
                raise DeviceError(f"a replay's {name} is another than a run's in {share:.1%} of its elements")

    def fill(self, images: NDArray[np.uint8]) -> None:
        """Copy images of the run's shape to the device."""
        contiguous = np.ascontiguousarray(images)  # strides are not looked at
        if self._copies is None:
            self._image.update_inplace(contiguous)
        else:
            self._copies.upload(contiguous, self._image.data_ptr())

    def replay(self) -> None:
        """Run on what was filled in; in the thread that made this, where it is a recording."""
        self._session.run_with_iobinding(self._binding, self._options)

    def read(self) -> Arrays:
        """Copy the outputs from the device to new arrays."""
        if self._copies is None:
            return [value.numpy().copy() for value in self.outputs]  # on the CPU they are the memory itself
        copies = self._copies
        return [copies.download(value.data_ptr(), *kind) for value, kind in zip(self.outputs, self._kinds, strict=True)]


def _run_options(graph: int) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(_GRAPH_ID, str(graph))
    return options

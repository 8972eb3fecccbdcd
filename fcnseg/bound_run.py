"""Runs whose input and outputs lie in the device's memory (onnxruntime's I/O binding)."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fcnseg.capture_gate import GATE
from fcnseg.cuda_copies import CudaCopies, CudaLane, DeviceArray
from fcnseg.cuda_driver import split_device
from fcnseg.errors import DeviceError
from fcnseg.model_file import OUTPUTS

Arrays: TypeAlias = Sequence[NDArray[Any]]
Copies: TypeAlias = CudaCopies | None
"""Makes copies to and from a device; None leaves them to onnxruntime."""
Images: TypeAlias = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
"""A batch: (N, H, W, 3) uint8 RGB, or N images (H, W, 3) of one size, which need not lie together."""
Shape: TypeAlias = tuple[int, int, int]
"""N, H and W."""
_DTYPES = {f"tensor({name})": np.dtype(kind) for name, kind in (("uint8", "u1"), ("uint16", "u2"), ("float", "f4"))}
"""The types of a model file's outputs."""
_GRAPH_ID = "gpu_graph_id"  # a run option: the number of a recording; -1 runs without one
_NOT_WAITED_FOR = "disable_synchronize_execution_providers"
"""Another run option, which replays respect too (https://github.com/microsoft/onnxruntime/pull/28686)."""
_UNRECORDED = -1
_RUNS_AHEAD = 2
"""Runs before the recording, in which onnxruntime allocates memory; it cannot while it records."""
_PATTERN = 251
"""A prime, so that neither rows nor images repeat each other."""
_MOST_APART = 0.01
_PROOF_BYTES = (1 << 20) + 5

_log = logging.getLogger(__name__)


class BoundRun:
    """A run whose input and outputs lie at fixed addresses of device memory; it is recorded and tested at once.

    Args:
        session: The session; if it was opened with CUDA graphs, the run is recorded.
        device: The session's device, `cuda:N` or `cpu`.
        copies: Makes the copies to and from the device.
        shape: The shape of the batch of images.
        outputs: Names of the wanted outputs.
        number: Identifies this run among those of the session.
        stream: The handle of the session's CUDA stream, if it was opened with one that we made.

    Raises:
        DeviceError: A replay gives a different result than a run without the recording.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        device: str,
        copies: Copies,
        shape: Shape,
        outputs: Sequence[str],
        number: int = 0,
        stream: int | None = None,
    ) -> None:
        place = split_device(device)
        self._copies = copies
        self._stream = stream
        self._session = session
        self._options, self._unawaited = _run_options(number), _run_options(number, waited_for=False)
        self._image = onnxruntime.OrtValue.ortvalue_from_shape_and_type((*shape, 3), np.uint8, *place)
        self._address = self._image.data_ptr()
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("image", self._image)
        for name in outputs:
            self._binding.bind_output(name, *place)
        self.fill(np.zeros((*shape, 3), np.uint8))
        for _ in range(_RUNS_AHEAD):
            session.run_with_iobinding(self._binding, _run_options(_UNRECORDED))
        self.outputs = self._binding.get_outputs()
        for name, value in zip(outputs, self.outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self._values = dict(zip(outputs, self.outputs, strict=True))
        self.replay()
        self._try_out(shape)

    def _try_out(self, shape: Shape) -> None:
        """Check with images other than the recorded ones that a replay reads its input and writes its outputs."""
        replayed = self.run(np.resize(np.arange(_PATTERN, dtype=np.uint8), (*shape, 3)))
        self._session.run_with_iobinding(self._binding, _run_options(_UNRECORDED))
        for name, ours, plain in zip(OUTPUTS, replayed, self.read(), strict=False):
            gap = np.abs(ours.astype(np.float32) - plain.astype(np.float32))
            share = float(np.mean(gap > _MOST_APART * (float(np.ptp(plain)) or 1)))
            if share > _MOST_APART:
                raise DeviceError(f"a replay's {name} differs from a plain run's in {share:.1%} of its elements")

    def run(self, images: Images, thread: Executor | None = None, wanted: Sequence[str] | None = None) -> Arrays:
        """Run on images.

        In a stream that we made, copies and replay are queued without waiting in between, so that the next run is
        queued when this one ends, and the device does not wait for the GIL.

        Args:
            images: A batch of the run's shape.
            thread: The executor of the thread that made the recording; None if that is this thread.
            wanted: Names of the outputs to read; None for all.

        Returns:
            These outputs, as new arrays.
        """
        values = self.outputs if wanted is None else [self._values[name] for name in wanted]
        if self._copies is None or self._stream is None:
            self.fill(images)
            _call(self.replay, thread)
            return _read(values, self._copies)
        with self._copies.lane() as lane:
            lane.upload(_contiguous(images), self._address)
            _call(partial(self._begin, lane, self._stream), thread)
            return lane.download([_place_of(value) for value in values])

    def _begin(self, lane: CudaLane, stream: int) -> None:
        """Queue a replay after the lane's copies, and the lane's next copies after the replay; wait for nothing."""
        lane.lead_into(stream)
        self._session.run_with_iobinding(self._binding, self._unawaited)
        lane.go_on_after(stream)

    def fill(self, images: Images) -> None:
        """Copy images of the run's shape to the device."""
        _write(images, self._image, self._copies)

    def replay(self) -> None:
        """Run on the images that were filled in; a recording must be replayed by the thread that made it."""
        self._session.run_with_iobinding(self._binding, self._options)

    def read(self) -> Arrays:
        """Copy the outputs from the device to new arrays."""
        return _read(self.outputs, self._copies)


def run_bound(
    session: onnxruntime.InferenceSession,
    device: str,
    copies: Copies,
    images: Images,
    outputs: Sequence[str],
) -> Arrays:
    """Run a session once, like `session.run`, but without copies that wait for the runs of other threads.

    Args:
        session: The session; `image` is its only input.
        device: The session's device, `cuda:N` or `cpu`.
        copies: Makes the copies to and from the device.
        images: The batch of images.
        outputs: Names of the wanted outputs.

    Returns:
        The outputs, as new arrays.
    """
    place = split_device(device)
    image = onnxruntime.OrtValue.ortvalue_from_shape_and_type((len(images), *images[0].shape), np.uint8, *place)
    _write(images, image, copies)
    binding = session.io_binding()
    binding.bind_ortvalue_input("image", image)
    for name in outputs:
        binding.bind_output(name, *place)
    session.run_with_iobinding(binding)
    return _read(binding.get_outputs(), copies)


@cache
def open_copies(device: str) -> Copies:
    """Return what makes copies to and from a device, one for all models of a process, since it keeps pinned memory.

    It is tested first, within the gate, which the caller must not hold. If the driver does not work as expected, that
    is logged, and onnxruntime makes the copies, more slowly and just as correctly.
    """
    kind, number = split_device(device)
    if kind == "cpu":
        return None
    try:
        with GATE.shared():
            copies = CudaCopies(number)
            prove_copies(copies, device)
    except (DeviceError, AttributeError) as error:  # AttributeError: a driver without such a function
        _log.warning("%s is used without pinned memory: %s", device, error)
        return None
    return copies


def prove_copies(copies: CudaCopies, device: str) -> None:
    """Check by onnxruntime's own copies that bytes reach a device, and that they come back.

    Raises:
        DeviceError: They do not.
    """
    pattern = np.resize(np.arange(_PATTERN, dtype=np.uint8), _PROOF_BYTES)
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(pattern.shape, np.uint8, *split_device(device))
    copies.upload([pattern], value.data_ptr())
    if not np.array_equal(value.numpy(), pattern):
        raise DeviceError("a copy to the device differs from what was copied")
    value.update_inplace(pattern[::-1].copy())
    (found,) = copies.download([(value.data_ptr(), pattern.shape, pattern.dtype)])
    if not np.array_equal(found, pattern[::-1]):
        raise DeviceError("a copy from the device differs from what the device holds")


def _write(images: Images, value: onnxruntime.OrtValue, copies: Copies) -> None:
    if copies is None:
        value.update_inplace(np.ascontiguousarray(images))  # strides are not looked at
    else:
        copies.upload(_contiguous(images), value.data_ptr())


def _read(values: Sequence[onnxruntime.OrtValue], copies: Copies) -> Arrays:
    if copies is None:
        return [value.numpy().copy() for value in values]  # on the CPU it is the memory itself
    return copies.download([_place_of(value) for value in values])


def _place_of(value: onnxruntime.OrtValue) -> DeviceArray:
    return value.data_ptr(), tuple(value.shape()), _DTYPES[value.data_type()]


def _contiguous(images: Images) -> list[NDArray[np.uint8]]:
    return [np.ascontiguousarray(image) for image in images]


def _call(function: Callable[[], None], thread: Executor | None) -> None:
    if thread is None:
        function()
        return
    begun = thread.submit(function)
    try:
        begun.result()
    except BaseException:  # this thread may be interrupted, and what it gives up is others' from then on
        if not begun.cancel():
            wait([begun])
        raise
    finally:
        del begun  # an exception that it holds would hold this frame


def _run_options(graph: int, *, waited_for: bool = True) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(_GRAPH_ID, str(graph))
    options.add_run_config_entry(_NOT_WAITED_FOR, str(int(not waited_for)))
    return options

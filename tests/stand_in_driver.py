"""A stand-in for NVIDIA's driver, whose device memory is the host's."""

import ctypes
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import onnxruntime
import pytest

from fcnseg import cuda_copies

_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT


@dataclass
class Mark:
    """What an event was recorded behind.

    Attributes:
        stream: In which stream.
        reached: Whether all that the stream was asked for before is done.
    """

    stream: int
    reached: bool = False

    def reach(self) -> None:
        self.reached = True


class StandInDriver:
    """Answers the driver's calls with 0, or with the code that it was told to fail with.

    Each device has a context, and what is opened in one is refused to threads that are in another or in none.

    What a stream is asked for is done as late as may be: when somebody waits for it. So what is read too early is not
    there yet, and what is overwritten too early is lost.

    Attributes:
        codes: What calls fail with, by name.
        loses: The name of a copy that is not done.
        streams: How many were opened.
    """

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.loses: str | None = None
        self.streams = 0
        self._events = 0
        self._marks: dict[int, Mark] = {}
        self._queues: defaultdict[int, deque[Callable[[], object]]] = defaultdict(deque)
        self._memory: list[ctypes.Array[ctypes.c_char]] = []
        self._lock = threading.RLock()
        self._thread = threading.local()
        self._contexts: dict[int, int | None] = {}  # by stream

    @classmethod
    def put_in_place(cls, patch: pytest.MonkeyPatch) -> Self:
        """Make it the driver that copies are asked of."""
        driver = cls()
        patch.setattr(cuda_copies, "open_driver", lambda *_: driver)
        return driver

    @property
    def pending(self) -> bool:
        """Whether anything was asked for and is not done yet."""
        return any(self._queues.values())

    def enqueue(self, stream: int, work: Callable[[], object]) -> None:
        """Let a stream do something, behind what it was asked for before."""
        with self._lock:
            self._queues[stream].append(work)

    def drain(self, stream: int) -> None:
        """Wait for a stream."""
        with self._lock:
            queue = self._queues[stream]
            while queue:
                queue.popleft()()

    def __getattr__(self, name: str) -> Callable[..., int]:
        return partial(self._answer, name)

    def _answer(self, name: str, *arguments: Any) -> int:
        plain = [argument for argument in arguments if isinstance(argument, int)]
        assert not plain, f"{name} would get {plain} as C's int, with half of an address's bits"
        if code := self.codes.get(name):
            return code
        match name, arguments:
            case "cuDeviceGet", (device, number):
                device._obj.value = number.value
            case "cuDevicePrimaryCtxRetain", (context, device):
                context._obj.value = device.value + 1
            case "cuCtxSetCurrent", (context,):
                self._thread.context = context.value
            case _ if self._is_misplaced(name, *arguments):
                return _INVALID_CONTEXT
            case _:
                with self._lock:
                    self._do(name, *arguments)
        return 0

    def _is_misplaced(self, name: str, *arguments: Any) -> bool:
        """Whether the thread is in no context, or in another than that of the stream that it asks."""
        context = getattr(self._thread, "context", None)
        match name, arguments:
            case "cuStreamSynchronize" | "cuStreamWaitEvent", (stream, *_):
                return bool(self._contexts[stream.value] != context)
            case "cuMemcpyHtoDAsync_v2" | "cuMemcpyDtoHAsync_v2" | "cuEventRecord", (*_, stream):
                return bool(self._contexts[stream.value] != context)
        return context is None

    def _do(self, name: str, *arguments: Any) -> None:
        match name, arguments:
            case "cuStreamCreate", (stream, _):
                self.streams += 1
                stream._obj.value = self.streams
                self._contexts[self.streams] = self._thread.context
            case "cuEventCreate", (event, _):
                self._events += 1
                event._obj.value = self._events
            case "cuMemHostAlloc", (address, size, _):
                self._memory.append(ctypes.create_string_buffer(size.value))
                address._obj.value = ctypes.addressof(self._memory[-1])
            case "cuMemcpyHtoDAsync_v2" | "cuMemcpyDtoHAsync_v2", (target, source, size, stream):
                if name != self.loses:
                    self.enqueue(stream.value, partial(ctypes.memmove, target.value, source.value, size.value))
            case "cuEventRecord", (event, stream):
                self._marks[event.value] = mark = Mark(stream.value)
                self.enqueue(mark.stream, mark.reach)
            case "cuStreamWaitEvent", (stream, event, _):
                self.enqueue(stream.value, partial(self._reach, self._marks[event.value]))
            case "cuStreamSynchronize", (stream,):
                self.drain(stream.value)
            case _:
                raise AssertionError(f"the driver has no {name} with {len(arguments)} arguments")

    def _reach(self, mark: Mark) -> None:
        while not mark.reached:
            self._queues[mark.stream].popleft()()


class StreamSession(onnxruntime.InferenceSession):
    """A session of the CPU that runs in a stream of the driver's, and waits for the run unless it is not to."""

    def __init__(self, driver: StandInDriver, stream: int, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._driver, self._stream = driver, stream

    def run_with_iobinding(
        self, iobinding: onnxruntime.IOBinding, run_options: onnxruntime.RunOptions | None = None
    ) -> None:
        assert run_options is not None
        self._driver.enqueue(self._stream, partial(super().run_with_iobinding, iobinding, run_options))
        if run_options.get_run_config_entry("disable_synchronize_execution_providers") == "0":
            self._driver.drain(self._stream)

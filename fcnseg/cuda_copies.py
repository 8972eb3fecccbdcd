"""Copies between arrays and a CUDA device's memory, concurrently with the device's computations and other threads.

onnxruntime's own copies hold the GIL until they are done, use pageable memory that the driver has to copy once more,
and wait for the previous run. Here copies use pinned memory, which the device reads and writes by itself (DMA), in
their own streams, and a run can be queued between two of them without waiting.
"""

import ctypes
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnseg.cuda_driver import open_driver
from fcnseg.errors import DeviceError

DeviceArray: TypeAlias = tuple[int, tuple[int, ...], np.dtype[Any]]
"""An array in device memory: its address, shape and dtype."""
_Bytes: TypeAlias = NDArray[np.uint8]
_LANE_BYTES = 16 << 20
_PORTABLE, _NON_BLOCKING, _UNTIMED = 1, 1, 2
"""CU_MEMHOSTALLOC_PORTABLE, CU_STREAM_NON_BLOCKING and CU_EVENT_DISABLE_TIMING."""


class CudaCopies:
    """Copies to and from one device's memory; threads may share it, and copy at the same time.

    When other threads want the GIL, taking it again takes longer than most calls here. So it is released only while
    waiting for the device, and for copies in memory, of as many bytes as one call can copy.

    Args:
        number: The device's number.

    Raises:
        DeviceError: The driver does not provide the device.
    """

    def __init__(self, number: int) -> None:
        self._driver = _Driver(number)
        self._free: list[CudaLane] = []
        self._streams: list[int] = []
        self._changing = threading.Lock()

    def upload(self, sources: Sequence[NDArray[Any]], address: int) -> None:
        """Copy contiguous arrays to device memory, one after the other, and return when the copies are complete."""
        with self.lane() as lane:
            lane.upload(sources, address)
            lane.wait()

    def download(self, sources: Sequence[DeviceArray]) -> list[NDArray[Any]]:
        """Copy arrays from device memory, and return them as new arrays."""
        with self.lane() as lane:
            return lane.download(sources)

    @contextmanager
    def lane(self) -> Iterator["CudaLane"]:
        """Lend a lane that no other thread uses; there are as many as threads have ever copied at the same time.

        A lane whose copies may still run after a failure, since waiting for them failed, is not lent again.
        """
        self._driver.enter()
        with self._changing:
            lane = self._free.pop() if self._free else None
        lane = lane or CudaLane(self._driver)
        try:
            yield lane
        except BaseException:
            with suppress(DeviceError):  # the first failure is the one to report
                lane.wait()
                self._give_back(lane)
            raise
        self._give_back(lane)

    def lend_stream(self, borrower: object) -> int:
        """Lend a stream for computing, for as long as the borrower exists.

        Returns:
            Its handle. It is never destroyed: work of the next borrower is queued after that of earlier ones.
        """
        self._driver.enter()
        with self._changing:
            stream = self._streams.pop() if self._streams else None
        stream = stream or _handle(self._driver.open_stream())
        weakref.finalize(borrower, self._streams.append, stream)
        return stream

    def _give_back(self, lane: "CudaLane") -> None:
        with self._changing:
            self._free.append(lane)


class CudaLane:
    """A pinned buffer and the stream for its copies to the device and back, one after the other.

    Args:
        driver: The device's driver, whose context must be current.

    Raises:
        DeviceError: A call of the driver failed; this holds for every method.
    """

    def __init__(self, driver: "_Driver") -> None:
        self._driver = driver
        self._event, address = ctypes.c_void_p(), ctypes.c_void_p()
        # Allocate memory first: if that fails, nothing else has to be released.
        driver.wait("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(_LANE_BYTES), ctypes.c_uint(_PORTABLE))
        driver.wait("cuEventCreate", ctypes.byref(self._event), ctypes.c_uint(_UNTIMED))
        self._stream = driver.open_stream()
        self._address = _handle(address)
        self._memory = np.ctypeslib.as_array((ctypes.c_uint8 * _LANE_BYTES).from_address(self._address))

    def upload(self, sources: Sequence[NDArray[Any]], address: int) -> None:
        """Copy contiguous arrays to device memory, one after the other; the lane must have no copies in progress.

        The last copies, of as many bytes as the lane's buffer holds, may still be in progress when this returns.
        """
        ends = accumulate((source.nbytes for source in sources), initial=address)
        for number, load in enumerate(_loads(zip(ends, map(_bytes_of, sources), strict=False))):
            if number:
                self.wait()
            count = self._gather([part for _, part in load])
            target, source = ctypes.c_uint64(load[0][0]), ctypes.c_void_p(self._address)
            self._driver.ask("cuMemcpyHtoDAsync_v2", target, source, ctypes.c_size_t(count), self._stream)

    def download(self, sources: Sequence[DeviceArray]) -> list[NDArray[Any]]:
        """Copy arrays from device memory after all that was queued before, and return them as new arrays."""
        found = [np.empty(shape, dtype) for _, shape, dtype in sources]
        addresses = (address for address, _, _ in sources)
        for load in list(_loads(zip(addresses, map(_bytes_of, found), strict=True))) or [[]]:
            at = 0
            for address, part in load:
                place, source = ctypes.c_void_p(self._address + at), ctypes.c_uint64(address)
                self._driver.ask("cuMemcpyDtoHAsync_v2", place, source, ctypes.c_size_t(part.size), self._stream)
                at += part.size
            self.wait()
            self._scatter([part for _, part in load])
        return found

    def wait(self) -> None:
        """Wait for all queued copies."""
        self._driver.wait("cuStreamSynchronize", self._stream)

    def lead_into(self, stream: int) -> None:
        """Make all that is queued in the stream from now on wait for the copies queued so far."""
        self._driver.enter()
        self._order(self._stream, ctypes.c_void_p(stream))

    def go_on_after(self, stream: int) -> None:
        """Make copies queued from now on wait for all that is queued in the stream so far."""
        self._order(ctypes.c_void_p(stream), self._stream)

    def _order(self, first: ctypes.c_void_p, second: ctypes.c_void_p) -> None:
        self._driver.ask("cuEventRecord", self._event, first)
        self._driver.ask("cuStreamWaitEvent", second, self._event, ctypes.c_uint(0))

    def _gather(self, parts: Sequence[_Bytes]) -> int:
        """Put parts one after the other at the beginning of the buffer, and return their number of bytes."""
        count = sum(part.size for part in parts)
        if len(parts) == 1:
            np.copyto(self._memory[:count], parts[0])
        else:
            cv2.hconcat([part[None] for part in parts], self._memory[None, :count])  # one call for all of them
        return count

    def _scatter(self, parts: Sequence[_Bytes]) -> None:
        """Copy the beginning of the buffer to parts, one after the other."""
        at = 0
        for part in parts:
            np.copyto(part, self._memory[at : at + part.size])
            at += part.size


class _Driver:
    """The driver's functions, on one device."""

    def __init__(self, number: int) -> None:
        driver, prompt = open_driver(), open_driver(ctypes.PyDLL)
        if driver is None or prompt is None:
            raise DeviceError("the NVIDIA driver cannot be opened")
        self._driver, self._prompt = driver, prompt
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self.wait("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        # The primary context, which onnxruntime uses as well; it and the lanes live as long as the process.
        self.wait("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def enter(self) -> None:
        """Make the device's context current in this thread, which may have used another meanwhile."""
        self.ask("cuCtxSetCurrent", self._context)

    def open_stream(self) -> ctypes.c_void_p:
        stream = ctypes.c_void_p()
        self.wait("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        return stream

    def ask(self, function: str, *arguments: object) -> None:
        """Call a function that returns at once, while holding the GIL."""
        _require(getattr(self._prompt, function)(*arguments), function)

    def wait(self, function: str, *arguments: object) -> None:
        """Call a function that takes time, without the GIL."""
        _require(getattr(self._driver, function)(*arguments), function)


def _bytes_of(array: NDArray[Any]) -> _Bytes:
    return array.reshape(-1).view(np.uint8)


def _loads(arrays: Iterable[tuple[int, _Bytes]]) -> Iterator[list[tuple[int, _Bytes]]]:
    """Split arrays, each with its address, into parts, and yield groups of parts that fit into a lane's buffer."""
    load: list[tuple[int, _Bytes]] = []
    room = _LANE_BYTES
    for address, data in arrays:
        start = 0
        while start < data.size:
            part = data[start : start + room]
            load.append((address + start, part))
            start += part.size
            room -= part.size
            if room == 0:
                yield load
                load, room = [], _LANE_BYTES
    if load:
        yield load


def _handle(pointer: ctypes.c_void_p) -> int:
    return pointer.value or 0


def _require(code: int, function: str) -> None:
    if code:
        raise DeviceError(f"the NVIDIA driver's {function} failed with code {code}")

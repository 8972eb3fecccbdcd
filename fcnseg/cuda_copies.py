"""Copies between arrays and a CUDA device's memory, beside what the device computes and what other threads do.

onnxruntime's own copies keep Python's lock until they are done, go by memory that the driver has to copy once more, and
wait for the run before them. Here they go by pinned memory, which the device reads and writes by itself, in streams of
their own, and a run that is not waited for takes its place between two of them.
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
    """Copies to and from one device's memory; threads may share it, and each copies at the same time as others.

    When other threads want Python's lock, to take it again takes longer than most of what is done here. So it is
    released only where the device is waited for, and for a copy, of as many bytes as one call can copy.

    Args:
        number: The device's.

    Raises:
        DeviceError: The driver does not give it.
    """

    def __init__(self, number: int) -> None:
        self._driver = _Driver(number)
        self._free: list[CudaLane] = []
        self._streams: list[int] = []
        self._changing = threading.Lock()

    def upload(self, sources: Sequence[NDArray[Any]], address: int) -> None:
        """Copy contiguous arrays to device memory, one behind the other, and return when they are there."""
        with self.lane() as lane:
            lane.upload(sources, address)
            lane.wait()

    def download(self, sources: Sequence[DeviceArray]) -> list[NDArray[Any]]:
        """Return what lies in device memory, as new arrays."""
        with self.lane() as lane:
            return lane.download(sources)

    @contextmanager
    def lane(self) -> Iterator["CudaLane"]:
        """Lend a lane that no other thread has; there are as many as threads have copied at a time.

        One whose copies may go on after a failure, since they could not be waited for, is not lent again.
        """
        self._driver.enter()
        with self._changing:
            lane = self._free.pop() if self._free else None
        lane = lane or CudaLane(self._driver)
        try:
            yield lane
        except BaseException:
            with suppress(DeviceError):  # what fails was told of before
                lane.wait()
                self._give_back(lane)
            raise
        self._give_back(lane)

    def lend_stream(self, borrower: object) -> int:
        """Lend a stream for computing, for as long as the borrower is there.

        Returns:
            Its handle. It is never destroyed: whoever borrows it next waits for what it was asked for before.
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
    """A way to a device and back: pinned memory, and the stream that its copies go by, one behind the other.

    Args:
        driver: Of the device; its context is to be current.

    Raises:
        DeviceError: What was asked for failed; of any method.
    """

    def __init__(self, driver: "_Driver") -> None:
        self._driver = driver
        self._event, address = ctypes.c_void_p(), ctypes.c_void_p()
        # What may be short comes first: what was had before it would be lost.
        driver.wait("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(_LANE_BYTES), ctypes.c_uint(_PORTABLE))
        driver.wait("cuEventCreate", ctypes.byref(self._event), ctypes.c_uint(_UNTIMED))
        self._stream = driver.open_stream()
        self._address = _handle(address)
        self._memory = np.ctypeslib.as_array((ctypes.c_uint8 * _LANE_BYTES).from_address(self._address))

    def upload(self, sources: Sequence[NDArray[Any]], address: int) -> None:
        """Copy contiguous arrays to device memory, one behind the other, in a lane in which nothing is under way.

        The last bytes may still be under way afterwards, as many as the lane holds.
        """
        ends = accumulate((source.nbytes for source in sources), initial=address)
        for number, load in enumerate(_loads(zip(ends, map(_bytes_of, sources), strict=False))):
            if number:
                self.wait()
            count = self._gather([part for _, part in load])
            target, source = ctypes.c_uint64(load[0][0]), ctypes.c_void_p(self._address)
            self._driver.ask("cuMemcpyHtoDAsync_v2", target, source, ctypes.c_size_t(count), self._stream)

    def download(self, sources: Sequence[DeviceArray]) -> list[NDArray[Any]]:
        """Return what lies in device memory when all that was asked for before is done, as new arrays."""
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
        """Return when all that was asked for is done."""
        self._driver.wait("cuStreamSynchronize", self._stream)

    def lead_into(self, stream: int) -> None:
        """Let what the stream is asked for from now on begin when the copies that were asked for are done."""
        self._driver.enter()
        self._order(self._stream, ctypes.c_void_p(stream))

    def go_on_after(self, stream: int) -> None:
        """Let copies that are asked for from now on begin when what the stream was asked for is done."""
        self._order(ctypes.c_void_p(stream), self._stream)

    def _order(self, first: ctypes.c_void_p, second: ctypes.c_void_p) -> None:
        self._driver.ask("cuEventRecord", self._event, first)
        self._driver.ask("cuStreamWaitEvent", second, self._event, ctypes.c_uint(0))

    def _gather(self, parts: Sequence[_Bytes]) -> int:
        """Lay parts one behind the other at the beginning, and return how many bytes they are."""
        count = sum(part.size for part in parts)
        if len(parts) == 1:
            np.copyto(self._memory[:count], parts[0])
        else:
            cv2.hconcat([part[None] for part in parts], self._memory[None, :count])  # one call for all of them
        return count

    def _scatter(self, parts: Sequence[_Bytes]) -> None:
        """Copy what lies at the beginning to parts, one behind the other."""
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
        # The context that onnxruntime uses as well; it stays for as long as the process does, and so do the lanes.
        self.wait("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def enter(self) -> None:
        """Make the device's context that of this thread, which may have used another meanwhile."""
        self.ask("cuCtxSetCurrent", self._context)

    def open_stream(self) -> ctypes.c_void_p:
        stream = ctypes.c_void_p()
        self.wait("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        return stream

    def ask(self, function: str, *arguments: object) -> None:
        """Ask for what is done at once, with Python's lock."""
        _require(getattr(self._prompt, function)(*arguments), function)

    def wait(self, function: str, *arguments: object) -> None:
        """Ask for what takes its time, without Python's lock."""
        _require(getattr(self._driver, function)(*arguments), function)


def _bytes_of(array: NDArray[Any]) -> _Bytes:
    return array.reshape(-1).view(np.uint8)


def _loads(arrays: Iterable[tuple[int, _Bytes]]) -> Iterator[list[tuple[int, _Bytes]]]:
    """Cut arrays, each with its address, into parts, and put together as many as a lane holds."""
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

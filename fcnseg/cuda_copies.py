"""Copies between arrays and a CUDA device's memory, beside what the device computes and what other threads do.

onnxruntime's own copies keep Python's lock until they are done, go by memory that the driver has to copy once more, and
wait for the run before them. Here they go by pinned memory, which the device reads and writes by itself, in streams of
their own.
"""

import ctypes
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
_PORTABLE, _NON_BLOCKING = 1, 1  # CU_MEMHOSTALLOC_PORTABLE, CU_STREAM_NON_BLOCKING


class CudaCopies:
    """Copies to and from one device's memory; threads may share it, and each copies at the same time as others.

    While other threads want Python's lock, to take it again once it was let go takes longer than most of what is done
    here. It is let go where the device is waited for, and for a copy of as many bytes as can be had by one call.

    Args:
        number: The device's.

    Raises:
        DeviceError: The driver does not give it.
    """

    def __init__(self, number: int) -> None:
        driver, prompt = open_driver(), open_driver(ctypes.PyDLL)
        if driver is None or prompt is None:
            raise DeviceError("the NVIDIA driver cannot be opened")
        self._driver, self._prompt = driver, prompt
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._wait("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        # The context that onnxruntime uses as well; it stays for as long as the process does, and so do the lanes.
        self._wait("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._free: list[_Lane] = []
        self._changing = threading.Lock()

    def upload(self, sources: Sequence[NDArray[Any]], address: int) -> None:
        """Copy contiguous arrays to device memory, one behind the other, and return when they are there."""
        ends = accumulate((source.nbytes for source in sources), initial=address)
        with self._lane() as lane:
            for load in _loads(zip(ends, map(_bytes_of, sources), strict=False)):
                count = lane.gather([part for _, part in load])
                target, source = ctypes.c_uint64(load[0][0]), ctypes.c_void_p(lane.address)
                self._ask("cuMemcpyHtoDAsync_v2", target, source, ctypes.c_size_t(count), lane.stream)
                self._wait("cuStreamSynchronize", lane.stream)

    def download(self, sources: Sequence[DeviceArray]) -> list[NDArray[Any]]:
        """Return what lies in device memory, as new arrays."""
        found = [np.empty(shape, dtype) for _, shape, dtype in sources]
        addresses = (address for address, _, _ in sources)
        with self._lane() as lane:
            for load in _loads(zip(addresses, map(_bytes_of, found), strict=True)):
                at = 0
                for address, part in load:
                    place, source = ctypes.c_void_p(lane.address + at), ctypes.c_uint64(address)
                    self._ask("cuMemcpyDtoHAsync_v2", place, source, ctypes.c_size_t(part.size), lane.stream)
                    at += part.size
                self._wait("cuStreamSynchronize", lane.stream)
                lane.scatter([part for _, part in load])
        return found

    @contextmanager
    def _lane(self) -> Iterator["_Lane"]:
        """Lend a lane that no other thread has; there are as many as threads have copied at a time."""
        self._ask("cuCtxSetCurrent", self._context)  # of this thread, which may have used another device meanwhile
        with self._changing:
            lane = self._free.pop() if self._free else None
        lane = lane or self._open_lane()
        try:
            yield lane
        finally:
            with self._changing:
                self._free.append(lane)

    def _open_lane(self) -> "_Lane":
        stream, address = ctypes.c_void_p(), ctypes.c_void_p()
        self._wait("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        self._wait("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(_LANE_BYTES), ctypes.c_uint(_PORTABLE))
        return _Lane(address.value or 0, stream)

    def _ask(self, function: str, *arguments: object) -> None:
        """Ask the driver for what is done at once, with Python's lock."""
        _require(getattr(self._prompt, function)(*arguments), function)

    def _wait(self, function: str, *arguments: object) -> None:
        """Ask the driver for what takes its time, without Python's lock."""
        _require(getattr(self._driver, function)(*arguments), function)


class _Lane:
    """Pinned memory, and the stream that its copies go by."""

    def __init__(self, address: int, stream: ctypes.c_void_p) -> None:
        self.address, self.stream = address, stream
        self._memory = np.ctypeslib.as_array((ctypes.c_uint8 * _LANE_BYTES).from_address(address))

    def gather(self, parts: Sequence[_Bytes]) -> int:
        """Lay parts one behind the other at the beginning, and return how many bytes they are."""
        count = sum(part.size for part in parts)
        if len(parts) == 1:
            np.copyto(self._memory[:count], parts[0])
        else:
            cv2.hconcat([part[None] for part in parts], self._memory[None, :count])  # one call for all of them
        return count

    def scatter(self, parts: Sequence[_Bytes]) -> None:
        """Copy what lies at the beginning to parts, one behind the other."""
        at = 0
        for part in parts:
            np.copyto(part, self._memory[at : at + part.size])
            at += part.size


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


def _require(code: int, function: str) -> None:
    if code:
        raise DeviceError(f"the NVIDIA driver's {function} failed with code {code}")

"""Copies between arrays and a CUDA device's memory, beside what the device computes and what other threads do.

onnxruntime's own copies keep Python's lock until they are done, go by memory that the driver has to copy once more, and
wait for the run before them. Here they go by pinned memory, which the device reads and writes by itself, in streams of
their own.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnseg.cuda_driver import open_driver
from fcnseg.errors import DeviceError

_LANE_BYTES = 16 << 20
_PORTABLE, _NON_BLOCKING = 1, 1  # CU_MEMHOSTALLOC_PORTABLE, CU_STREAM_NON_BLOCKING


class CudaCopies:
    """Copies to and from one device's memory; threads may share it, and each copies at the same time as others.

    Args:
        number: The device's.

    Raises:
        DeviceError: The driver does not give it.
    """

    def __init__(self, number: int) -> None:
        driver = open_driver()
        if driver is None:
            raise DeviceError("the NVIDIA driver cannot be opened")
        self._driver = driver
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._ask("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        # The context that onnxruntime uses as well; it stays for as long as the process does, and so do the lanes.
        self._ask("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._free: list[_Lane] = []
        self._changing = threading.Lock()

    def upload(self, source: NDArray[Any], address: int) -> None:
        """Copy a contiguous array to device memory of its size, and return when it is there."""
        data = source.reshape(-1).view(np.uint8)
        with self._lane() as lane:
            for start in range(0, data.size, _LANE_BYTES):
                part = data[start : start + _LANE_BYTES]
                np.copyto(lane.memory[: part.size], part)
                target = ctypes.c_uint64(address + start)
                self._ask("cuMemcpyHtoDAsync_v2", target, lane.address, ctypes.c_size_t(part.size), lane.stream)
                self._ask("cuStreamSynchronize", lane.stream)

    def download(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return what lies in device memory, as a new array."""
        found = np.empty(shape, dtype)
        data = found.reshape(-1).view(np.uint8)
        with self._lane() as lane:
            for start in range(0, data.size, _LANE_BYTES):
                part = data[start : start + _LANE_BYTES]
                source = ctypes.c_uint64(address + start)
                self._ask("cuMemcpyDtoHAsync_v2", lane.address, source, ctypes.c_size_t(part.size), lane.stream)
                self._ask("cuStreamSynchronize", lane.stream)
                np.copyto(part, lane.memory[: part.size])
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
        self._ask("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        size, portable = ctypes.c_size_t(_LANE_BYTES), ctypes.c_uint(_PORTABLE)
        self._ask("cuMemHostAlloc", ctypes.byref(address), size, portable)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * _LANE_BYTES).from_address(address.value or 0))
        return _Lane(address, memory, stream)

    def _ask(self, function: str, *arguments: object) -> None:
        code = getattr(self._driver, function)(*arguments)  # without Python's lock, as all that ctypes calls
        if code:
            raise DeviceError(f"the NVIDIA driver's {function} failed with code {code}")


class _Lane:
    """Pinned memory, and the stream that its copies go by."""

    def __init__(self, address: ctypes.c_void_p, memory: NDArray[np.uint8], stream: ctypes.c_void_p) -> None:
        self.address, self.memory, self.stream = address, memory, stream

"""Copies between arrays and a CUDA device's memory, by the driver, while other threads go on.

onnxruntime's own copies of device memory keep Python's lock until they are done. What another thread has to say to the
device, such as the next run, then waits for them, and so does the device.
"""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnseg.cuda_driver import open_driver
from fcnseg.errors import DeviceError


class CudaCopies:
    """Copies to and from one device's memory; threads may share it.

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
        # The context that onnxruntime uses as well; it stays for as long as the process does.
        self._ask("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def upload(self, source: NDArray[Any], address: int) -> None:
        """Copy a contiguous array to device memory of its size, and return when it is there."""
        self._copy("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(source.ctypes.data), source.nbytes)

    def download(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return what lies in device memory, as a new array."""
        target = np.empty(shape, dtype)
        self._copy("cuMemcpyDtoH_v2", ctypes.c_void_p(target.ctypes.data), ctypes.c_uint64(address), target.nbytes)
        return target

    def _copy(self, function: str, target: object, source: object, count: int) -> None:
        self._ask("cuCtxSetCurrent", self._context)  # of this thread, which may have used another device meanwhile
        self._ask(function, target, source, ctypes.c_size_t(count))

    def _ask(self, function: str, *arguments: object) -> None:
        code = getattr(self._driver, function)(*arguments)  # without Python's lock, as all that ctypes calls
        if code:
            raise DeviceError(f"the NVIDIA driver's {function} failed with code {code}")

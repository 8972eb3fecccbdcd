"""The NVIDIA driver, called without the CUDA runtime libraries."""

import ctypes

_LONGEST_NAME = 256


def open_driver(kind: type[ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL | None:
    """Return the initialised driver; None if there is none.

    Args:
        kind: `ctypes.PyDLL` for functions that hold the GIL: taking it again while other threads want it takes longer
            than these functions, except those that wait.
    """
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = kind(name)
        except OSError:
            continue
        if driver.cuInit(0) == 0:
            return driver
    return None


def split_device(device: str) -> tuple[str, int]:
    """Return a device's kind and number: `cuda` and N of `cuda:N`, `cpu` and 0 of `cpu`."""
    kind, _, number = device.partition(":")
    return kind, int(number or 0)


def device_count() -> int:
    """Return the number of devices; 0 if there is no driver."""
    driver, count = open_driver(), ctypes.c_int()
    return count.value if driver and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def device_name(device: str) -> str:
    """Return the driver's name of a GPU, such as `NVIDIA L4`; empty for the CPU and for a missing GPU."""
    name = ctypes.create_string_buffer(_LONGEST_NAME)
    found = _find(device)
    known = found is not None and found[0].cuDeviceGetName(name, len(name), found[1]) == 0
    return name.value.decode(errors="replace") if known else ""


def device_memory(device: str) -> int:
    """Return the bytes of a GPU's memory; 0 for the CPU and for a missing GPU."""
    count = ctypes.c_size_t()
    found = _find(device)
    known = found is not None and found[0].cuDeviceTotalMem_v2(ctypes.byref(count), found[1]) == 0
    return count.value if known else 0


def free_share(device: str) -> float:
    """Return the share of a GPU's memory that is free, 0 to 1; 0 for the CPU and for a missing GPU."""
    found = _find(device)
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if found is None or found[0].cuDevicePrimaryCtxRetain(ctypes.byref(context), found[1]) != 0:
        return 0.0
    driver, handle = found
    try:
        if driver.cuCtxSetCurrent(context) or driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)):
            return 0.0
        return free.value / total.value
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(handle)


def _find(device: str) -> tuple[ctypes.CDLL, ctypes.c_int] | None:
    """Return the driver and its handle of a device, `cuda:N`."""
    kind, number = split_device(device)
    driver, handle = open_driver() if kind == "cuda" else None, ctypes.c_int()
    if driver is None or driver.cuDeviceGet(ctypes.byref(handle), number) != 0:
        return None
    return driver, handle

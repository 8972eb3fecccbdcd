"""Where a model can run: the CPU, or a CUDA device of the NVIDIA driver."""

import ctypes

import onnxruntime

from fcnseg.cuda_driver import device_count, split_device
from fcnseg.errors import DeviceError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
"""onnxruntime's execution providers."""
FATAL_ONLY = 4
"""onnxruntime's log level for fatal errors only: other errors raise exceptions, and would be printed as well."""


def resolve_device(device: str) -> str:
    """Return the device that a name stands for: `cpu` or `cuda:N`.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, or `auto` (the first CUDA device if there is one, else the CPU).

    Raises:
        DeviceError: The name is none of these.
    """
    kind, _, number = device.partition(":")
    if kind == "auto" and not number:
        return "cuda:0" if _has_cuda() and device_count() else "cpu"
    if kind == "cpu" and not number:
        return "cpu"
    if kind == "cuda" and (number or "0").isdecimal():
        return f"cuda:{int(number or 0)}"
    raise DeviceError(f"unknown device {device!r}; use cpu, cuda, cuda:N or auto")


def require_cuda(device: str) -> None:
    """Check that a device is available, and load the libraries that onnxruntime needs for it.

    Args:
        device: `cuda:N`.

    Raises:
        DeviceError: This onnxruntime has no CUDA support, or the driver does not show the device.
    """
    # Failures raise exceptions; the provider would also write every attempt to stderr.
    onnxruntime.set_default_logger_severity(FATAL_ONLY)
    if not _has_cuda():
        raise DeviceError(f"device {device} was asked for, but this onnxruntime has no CUDA support; use --device cpu")
    count = device_count()
    if split_device(device)[1] >= count:
        raise DeviceError(
            f"device {device} was asked for, but the NVIDIA driver shows {count or 'no'} devices; use --device cpu"
            + (f" or cuda:0 to cuda:{count - 1}" if count else "")
        )
    onnxruntime.preload_dlls()


def _has_cuda() -> bool:
    """Tell whether this build of onnxruntime supports CUDA."""
    return CUDA in onnxruntime.get_available_providers()


def cudnn_version() -> str:
    """Return the version of the loaded or loadable cuDNN, such as `9.10.2`; empty if there is none."""
    for name in ("libcudnn.so.9", "cudnn64_9.dll"):
        try:
            number = int(ctypes.CDLL(name).cudnnGetVersion())
        except (OSError, AttributeError):
            continue
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return ""

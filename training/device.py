"""Choose torch's device: the requested device or an error, never a silent fallback."""

import contextlib
from collections.abc import Iterator

import torch

from fcnseg.cores import usable_cores
from fcnseg.errors import DeviceError
from training.config import Device, Precision

_MOST_WORKERS = 8


def resolve_device(device: Device) -> str:
    """Return `cpu` or `cuda` for the requested device.

    Raises:
        DeviceError: CUDA was asked for and torch has none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device cuda was asked for, but torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    return device


def resolve_precision(precision: Precision, device: str) -> Precision:
    """Resolve `auto` to bf16 on CUDA devices that have it, fp16 on older ones, and fp32 on the CPU.

    Raises:
        DeviceError: The device cannot train in the requested precision.
    """
    if precision == "fp16" and device == "cpu":
        raise DeviceError("precision fp16 was asked for, but the CPU trains in fp32 or bf16; use --precision fp32")
    if precision != "auto":
        return precision
    if device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Disable TF32, in which CUDA rounds the factors of fp32 products to 10 bits, in convolutions by default.

    Measurements must hold for the exported file too, which does not use TF32.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def resolve_workers(workers: int | None, device: str) -> int:
    """Return how many processes prepare batches: none on the CPU, whose cores are busy, and one per core on CUDA."""
    if workers is not None:
        return workers
    return 0 if device == "cpu" else min(_MOST_WORKERS, usable_cores())

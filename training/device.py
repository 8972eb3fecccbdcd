"""Where torch computes: the device that was asked for, or an error; never another one."""

import torch

from fcnseg.cores import usable_cores
from fcnseg.errors import DeviceError
from training.config import Device, Precision

_MOST_WORKERS = 8


def resolve_device(device: Device) -> str:
    """Return `cpu` or `cuda` for what was asked for.

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
    """Return what `auto` stands for: bf16 on CUDA devices that have it, fp16 on older ones, fp32 on the CPU."""
    if precision != "auto":
        return precision
    if device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def resolve_workers(workers: int | None, device: str) -> int:
    """Return how many processes prepare batches: none on the CPU, whose cores are busy, and one a core on CUDA."""
    if workers is not None:
        return workers
    return 0 if device == "cpu" else min(_MOST_WORKERS, usable_cores())

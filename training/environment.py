"""What a run ran on: what has to be the same for its figures to be repeated."""

import os
import platform
from typing import Any

import torch

from fcnseg.installed import installed_versions

_PACKAGES = (
    *("fcnseg", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "opencv-python", "pillow"),
    *("onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "segmentation-models-pytorch"),
)


def package_versions() -> dict[str, str]:
    """Versions of the packages that the figures of a run or a file depend on, as far as they are installed."""
    return installed_versions(_PACKAGES)


def describe_environment(device: str) -> dict[str, Any]:
    """Return machine, device and package versions, as JSON has them.

    Args:
        device: `cpu` or `cuda`.
    """
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cuda": torch.version.cuda if device == "cuda" else None,
        "packages": package_versions(),
    }

"""The environment of a run, which must be the same to reproduce its results."""

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
    """Return the versions of the installed packages on which the results of a run or a file depend."""
    return installed_versions(_PACKAGES)


def describe_environment(device: str) -> dict[str, Any]:
    """Return machine, device and package versions as a JSON object.

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

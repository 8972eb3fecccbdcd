"""Whether there is a CUDA device, for tests that need one."""

import onnxruntime
import pytest

from fcnseg.cuda_driver import device_count

GPUS = device_count() if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else 0

needs_gpu = pytest.mark.skipif(GPUS == 0, reason="this machine has no CUDA device")

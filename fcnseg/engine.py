"""The engine: one onnxruntime session on the device that was asked for."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fcnseg.errors import DeviceError, ModelFileError
from fcnseg.model_file import ModelInfo, read_info
from fcnseg.types import ClassMap

_ERRORS_ONLY = 3


@dataclass(frozen=True, eq=False)
class EngineOutput:
    """What the graph answers for a batch.

    Attributes:
        class_map: (N, H, W) uint8 or uint16.
        heatmap: (N, K, h, w) float32.
        confidence: (N, H, W) uint8, or None when it was not asked for.
    """

    class_map: ClassMap
    heatmap: NDArray[np.float32]
    confidence: NDArray[np.uint8] | None


class Engine:
    """A model file opened on one device; `run` may be called from several threads.

    Args:
        path: The model file.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` (the first CUDA device where there is one, else the CPU).
        threads: Threads within an operator on the CPU; 0 takes one per physical core.

    Attributes:
        info: What the model file says of itself.
        device: Where it runs: `cpu` or `cuda:N`.

    Raises:
        ModelFileError: The file is not a valid fcnseg model.
        DeviceError: The device is not there or cannot run the model; the engine never falls back to another.
    """

    info: ModelInfo
    device: str

    def __init__(self, path: str | Path, device: str = "auto", threads: int = 0) -> None:
        path = Path(path)
        self.device = _resolve_device(device)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise ModelFileError(f"model file {path} {what}; make one with 'fcnseg heatmap' or 'fcnseg export'")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERRORS_ONLY
        self._session = _open_session(path, options, self.device)
        self._session.disable_fallback()
        self.info = read_info(self._session, path)

    def run(self, images: NDArray[np.uint8], *, confidence: bool = False) -> EngineOutput:
        """Segment a batch of images of one size.

        Args:
            images: (N, H, W, 3) uint8 RGB, N, H and W at least 1.
            confidence: Whether to compute the confidence map too.

        Returns:
            Class maps at the images' own size, heatmaps, and confidences if asked for.
        """
        feed: dict[str, NDArray[np.generic]] = {"image": images}
        if confidence:
            feed["with_confidence"] = np.array(confidence)
        class_map, heatmap, confidences = self._session.run(None, feed)
        return EngineOutput(class_map, heatmap, confidences if confidence else None)


def _resolve_device(device: str) -> str:
    kind, _, number = device.partition(":")
    if kind == "auto" and not number:
        return "cuda:0" if _has_cuda() and _cuda_device_count() else "cpu"
    if kind == "cpu" and not number:
        return "cpu"
    if kind == "cuda" and (number or "0").isdecimal():
        return f"cuda:{int(number or 0)}"
    raise DeviceError(f"unknown device {device!r}; use cpu, cuda, cuda:N or auto")


def _open_session(path: Path, options: onnxruntime.SessionOptions, device: str) -> onnxruntime.InferenceSession:
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device != "cpu":
        _require_cuda(device)
        # HEURISTIC: the default search runs every new image shape through a slow fallback plan first.
        cuda = {
            "device_id": device.partition(":")[2],
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        }
        providers.insert(0, ("CUDAExecutionProvider", cuda))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        reason = " ".join(str(error).split())
        if device != "cpu" and "CUDA" in reason:
            raise DeviceError(f"device {device} cannot run {path}: {reason}; use --device cpu") from error
        raise ModelFileError(f"{path} is not an ONNX file that onnxruntime can open: {reason}") from error
    if device != "cpu" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError(
            f"device {device} was asked for, but onnxruntime {onnxruntime.__version__} could not load its CUDA"
            " libraries; install 'onnxruntime-gpu[cuda,cudnn]' or use --device cpu"
        )
    return session


def _require_cuda(device: str) -> None:
    if not _has_cuda():
        raise DeviceError(f"device {device} was asked for, but this onnxruntime has no CUDA support; use --device cpu")
    count = _cuda_device_count()
    if int(device.partition(":")[2]) >= count:
        raise DeviceError(
            f"device {device} was asked for, but the NVIDIA driver shows {count or 'no'} devices; use --device cpu"
            + (f" or cuda:0 to cuda:{count - 1}" if count else "")
        )
    onnxruntime.preload_dlls()


def _has_cuda() -> bool:
    """Whether this build of onnxruntime knows CUDA at all."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _cuda_device_count() -> int:
    """Ask the NVIDIA driver how many devices there are; 0 where there is no driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int()
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0

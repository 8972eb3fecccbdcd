"""Ways to get masks of a batch, for gpu.py: each is made ready once, and then called again and again."""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from reporting import Spread, in_turns
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fcnseg.bound_run import BoundRun, Shape, open_copies
from fcnseg.cuda_graphs import CudaGraphs
from fcnseg.devices import CUDA, FATAL_ONLY
from fcnseg.engine import Engine, EngineOptions, EngineOutput, open_recording
from fcnseg.model_file import OUTPUTS
from fcnseg.specialised_model import write_specialised
from training.model import SegmentationModel

Way = Callable[[], object]
"""Computes a batch's masks once more, and answers with what `masks_of` reads them from."""
MASKS = OUTPUTS[:2]
BY_TWO = 8
"""Batches that a call in two threads computes."""
_LONGEST_NAME = 110


class Files:
    """Ways by onnxruntime, on the files of one net.

    Args:
        paths: Model files by precision, `fp32` and `fp16`.
        device: `cpu` or `cuda:N`; on the CPU nothing is recorded, laid out anew or pinned.
        folder: For specialised files.
    """

    def __init__(self, paths: dict[str, Path], device: str, folder: Path) -> None:
        self._paths, self._device, self._folder = paths, device, folder
        self._engines: dict[tuple[str, bool], Engine] = {}
        self._graphs: dict[tuple[str, bool], CudaGraphs] = {}
        self._plain: dict[str, onnxruntime.InferenceSession] = {}

    def plain(self, precision: str, images: NDArray[np.uint8]) -> Way:
        """Call session.run of a session with nothing but the provider set."""
        session = self._plain.get(precision) or self._open_plain(precision)
        self._plain[precision] = session
        return lambda: session.run(MASKS, {"image": images})

    def _open_plain(self, precision: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        on_cuda = (CUDA, {"device_id": self._device.partition(":")[2]})
        providers = ["CPUExecutionProvider"] if self._on_cpu else [on_cuda, "CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(self._path(precision)), options, providers=providers)
        if not self._on_cpu and CUDA not in session.get_providers():
            raise RuntimeError("onnxruntime fell back to the CPU")
        return session

    def engine(self, precision: str, images: NDArray[np.uint8], *, channels_last: bool = False) -> Way:
        """Call the engine in one thread."""
        engine = self._engine(precision, channels_last=channels_last)
        return lambda: engine.run(images)

    def engine_by_two(self, precision: str, images: NDArray[np.uint8], *, channels_last: bool = False) -> Way:
        """Call the engine in two threads, so that copies and runs overlap; `BY_TWO` batches a call."""
        engine = self._engine(precision, channels_last=channels_last)
        return by_two(lambda: engine.run(images))

    def bound(self, precision: str, images: NDArray[np.uint8], *, channels_last: bool = False) -> Way:
        """IOBinding with input and outputs on the device: nothing is copied."""
        session = self._session(precision, channels_last=channels_last)
        run = BoundRun(session, self._device, open_copies(self._device), images.shape[:3], MASKS)
        run.fill(images)
        return partial(_replay, run)

    def pinned(self, precision: str, images: NDArray[np.uint8], *, channels_last: bool = False) -> Way:
        """IOBinding with input and outputs in pinned memory of the host."""
        session = self._session(precision, channels_last=channels_last)
        sample = session.run(MASKS, {"image": images})
        source, *answers = (self._pinned(array) for array in (images, *sample))  # the binding keeps none of them
        binding = session.io_binding()
        for name, answer in zip(MASKS, answers, strict=True):
            binding.bind_output(name, "cpu", 0, answer.dtype.type, answer.shape, answer.ctypes.data)

        def run() -> NDArray[Any]:
            binding.bind_cpu_input("image", source)  # copies to the device
            session.run_with_iobinding(binding)
            return answers[0]

        return run

    def recorded(self, precision: str, images: NDArray[np.uint8], *, channels_last: bool = False) -> Way:
        """A CUDA graph's replay alone."""
        run = self._recorded(precision, images.shape[:3], channels_last=channels_last)
        run.fill(images)
        return partial(_replay, run)

    def recorded_pinned(self, precision: str, images: NDArray[np.uint8], *, channels_last: bool = False) -> Way:
        """A CUDA graph, with copies from and to pinned memory."""
        run = self._recorded(precision, images.shape[:3], channels_last=channels_last)
        source = self._pinned(images)
        on_device = [torch.from_dlpack(value._get_c_value()) for value in run.outputs]  # noqa: SLF001 # has DLPack
        on_host = [torch.empty_like(t, device="cpu", pin_memory=not self._on_cpu) for t in on_device]

        def replay() -> Tensor:
            run.fill(source)
            run.replay()
            for host, device in zip(on_host, on_device, strict=True):
                host.copy_(device, non_blocking=True)
            self.synchronise()
            return on_host[0]

        return replay

    def graphs(self, precision: str, images: NDArray[np.uint8], *, channels_last: bool = False) -> Way:
        """Run CUDA graphs as the engine does, copies included."""
        key = (precision, channels_last)
        if key not in self._graphs:
            self._graphs[key] = self.cuda_graphs(precision, 1, channels_last=channels_last)
        graphs = self._graphs[key]
        for _ in range(8):  # a shape takes another's place when it has come so often
            graphs.run(images, MASKS)
        return lambda: graphs.run(images, MASKS)

    def graphs_by_two(self, precision: str, images: NDArray[np.uint8], *, channels_last: bool = False) -> Way:
        """The same by two threads, so that copies and runs overlap; `BY_TWO` batches a call."""
        return by_two(self.graphs(precision, images, channels_last=channels_last))

    def cuda_graphs(self, precision: str, limit: int, *, channels_last: bool = False) -> CudaGraphs:
        """Recorded runs as the engine keeps them."""
        options = self._options(channels_last)
        return CudaGraphs(
            self._path(precision),
            self._device,
            limit,
            partial(open_recording, self._device, options),
        )

    def synchronise(self) -> None:
        if not self._on_cpu:
            torch.cuda.synchronize()

    def _recorded(self, precision: str, shape: Shape, *, channels_last: bool) -> BoundRun:
        path = self._folder / "specialised.onnx"
        write_specialised(memoryview(self._path(precision).read_bytes()), path, confidence=False)
        session = open_recording(self._device, self._options(channels_last), path, shape, None)
        return BoundRun(session, self._device, open_copies(self._device), shape, MASKS)

    def _session(self, precision: str, *, channels_last: bool) -> onnxruntime.InferenceSession:
        session = self._engine(precision, channels_last=channels_last)._session  # noqa: SLF001 # as the engine has it
        if session is None:
            raise RuntimeError("the engine has no session")
        return session

    def _engine(self, precision: str, *, channels_last: bool) -> Engine:
        key = (precision, channels_last)
        if key not in self._engines:
            self._engines[key] = Engine(self._path(precision), self._device, self._options(channels_last))
        return self._engines[key]

    def _options(self, channels_last: bool) -> EngineOptions:  # noqa: FBT001 # the one option of these benchmarks
        return EngineOptions(channels_last=channels_last and not self._on_cpu)

    def _path(self, precision: str) -> Path:
        if precision not in self._paths:
            raise LookupError(f"there is no {precision} file: see the section of its export")
        return self._paths[precision]

    def _pinned(self, array: NDArray[Any]) -> NDArray[Any]:
        """A copy in memory that the device reads by itself."""
        return torch.from_numpy(array.copy()).pin_memory().numpy() if not self._on_cpu else array.copy()

    @property
    def _on_cpu(self) -> bool:
        return self._device == "cpu"


class SameModule(nn.Module):
    """The module that the model file was exported from, and arg-max: its masks are the file's."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8 to (N, H, W) uint8 classes and (N, K, h, w) scores."""
        heatmap, size = self.model.heatmap(images), (images.shape[1], images.shape[2])
        return self.model.enlarge_scores(heatmap, size).argmax(1).to(torch.uint8), heatmap


class Torch:
    """Ways by PyTorch, in half precision and channels last, images and masks on the device.

    Args:
        net: `SameModule` or `AsUsersWriteIt`.
        device: `cpu` or `cuda:N`.
    """

    def __init__(self, net: nn.Module, device: str) -> None:
        self._device = torch.device(device)
        torch.backends.cudnn.benchmark = True
        net = net.eval().requires_grad_(False).to(self._device, memory_format=torch.channels_last)
        self._net = net if device == "cpu" else net.half()  # the CPU has no fast half precision

    def multiply_adds(self, images: NDArray[np.uint8]) -> float:
        """Multiply-adds of a batch."""
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            self._net(self._on_device(images))
        return counter.get_total_flops() / 2

    def eager(self, images: NDArray[np.uint8]) -> Way:
        """As it is, on (N, H, W, 3) uint8 RGB; each layer's kernel is the fastest that cuDNN finds for its shape."""
        return self._calling(self._net, images)

    def compiled(self, images: NDArray[np.uint8]) -> Way:
        """By torch.compile with CUDA graphs, kernels likewise; on the CPU without its compiler, which takes long."""
        on_cpu = self._device.type == "cpu"
        compiled = torch.compile(self._net, dynamic=False, **({"backend": "eager"} if on_cpu else _REDUCE_OVERHEAD))
        run = self._calling(compiled, images)

        def step() -> object:
            torch.compiler.cudagraph_mark_step_begin()  # nobody needs the last answer any more
            return run()

        return run if on_cpu else step

    def _calling(self, net: Callable[[Tensor], tuple[Tensor, Tensor]], images: NDArray[np.uint8]) -> Way:
        tensor = self._on_device(images)

        @torch.inference_mode()
        def run() -> Tensor:
            class_map, _ = net(tensor)
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            return class_map

        return run

    def _on_device(self, images: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(images).to(self._device)


_REDUCE_OVERHEAD = {"mode": "reduce-overhead"}


def matrix_rate(device: str, side: int, rounds: int, seconds: float) -> Spread:
    """Multiply-adds a second of a square matrix product, in half precision on CUDA; so many rounds of so long each."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    many = 1 if device == "cpu" else 20

    def products() -> None:
        for _ in range(many):
            torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()

    (found,) = in_turns({"product": products}, rounds, seconds).values()
    return Spread.of(many * side**3 / taken for taken in found.values)


def masks_of(answer: object) -> NDArray[np.uint8]:
    """The class maps, (N, H, W) uint8, in what a way answered."""
    match answer:
        case EngineOutput():
            return answer.class_map.astype(np.uint8)
        case BoundRun():
            return masks_of(answer.read())
        case Tensor():
            return np.asarray(answer.cpu().numpy(), np.uint8)
        case np.ndarray():
            return np.asarray(answer, np.uint8)
        case list() | tuple():  # of outputs, or of batches
            return masks_of(answer[0])
    raise TypeError(f"there are no masks in {type(answer).__name__}")


def _replay(run: BoundRun) -> BoundRun:
    run.replay()
    return run


def by_two(way: Way) -> Way:
    """Call a way in two threads, four times each, so that the first and the last run count little."""
    pool = ThreadPoolExecutor(2)
    return lambda: [future.result() for future in [pool.submit(way) for _ in range(BY_TWO)]]


@dataclass(frozen=True)
class Kernel:
    """A kernel of the device, or a kind of copy.

    Attributes:
        name: Its name, without namespaces.
        ms: What its calls of a run take together.
        calls: How many calls a run has.
    """

    name: str
    ms: float
    calls: int


def kernel_times(way: Way, runs: int) -> list[Kernel]:
    """Record what the device does in some runs, whoever started it; the longest first."""
    for _ in range(2):
        way()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(runs):
                way()
            torch.cuda.synchronize()
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        if event.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}:
            name = _short(event["name"])
            spent[name] += event["dur"]
            calls[name] += 1
    return [Kernel(name, us / 1000 / runs, round(calls[name] / runs)) for name, us in spent.most_common()]


def _short(name: str) -> str:
    """A kernel's name without namespaces and what its function takes, and no longer than a line."""
    named = re.sub(r"\(anonymous namespace\)::|\((bool|int|unsigned int)\)|\b\w+::|^void ", "", name)
    return named.partition("(")[0][:_LONGEST_NAME]

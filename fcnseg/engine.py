"""The engine: a model file opened in onnxruntime on the requested device."""

import ctypes
import logging
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fcnseg.bound_run import Images, Shape, open_copies, run_bound
from fcnseg.capture_gate import GATE
from fcnseg.cores import MOST_THREADS, threads_beside, threads_for
from fcnseg.cuda_driver import split_device
from fcnseg.cuda_graphs import CudaGraphs
from fcnseg.devices import CPU, CUDA, FATAL_ONLY, require_cuda, resolve_device
from fcnseg.errors import DeviceError, ModelFileError, UsageError, one_line
from fcnseg.graph import GraphNode, read_graph
from fcnseg.model_file import CLASS_MAP, CONFIDENCE, HEATMAP, OUTPUTS, ModelInfo, read_info, require_model_file
from fcnseg.placement import Probe, probe, require_device
from fcnseg.profiles import Event, end_profiling, profile_folder
from fcnseg.specialised_model import write_specialised
from fcnseg.trial import try_out
from fcnseg.types import ClassMap

_BLOCKS_PER_THREAD = "4"
_GRAPHS_UNASKED = 16
_log = logging.getLogger(__name__)

CudnnSearch = Literal["heuristic", "exhaustive", "default"]


@dataclass(frozen=True)
class EngineOptions:
    """How a session runs; no option changes a class map on the CPU.

    Attributes:
        threads: CPU threads per operator, up to 1024; 0 uses one per physical core, or one per CPU of a container that
            is limited to fewer (`cores.threads_for`).
        runs: How many CPU runs may go on side by side and divide these threads; `Engine.run` is told by `beside`.
        spinning: Whether idle CPU threads busy-wait for a moment, which lowers latency and uses more power.
        arena: Whether memory that a run frees is kept for the next; on CUDA it always is.
        cudnn_search: How cuDNN chooses an algorithm for a new shape: by its heuristic, by another heuristic
            ("exhaustive", which since onnxruntime 1.20 searches nothing), or by its fallback ("default"). The first was
            fastest by far for every net that it could run (docs/decisions/2026-11-26-sixteen-bit-files-on-an-h200.md).
        tf32: Whether CUDA may round the factors of products to 10 bits: faster, and scores differ in the third digit.
        prove: Whether to run the model on small images when it is opened, to find where each operator runs and how
            much memory a pixel takes. On CUDA this is always done.
        channels_last: Whether CUDA uses the memory layout NHWC, which suits tensor cores; scores differ in their last
            digits. None does so if the net computes in fp16.
        cuda_graphs: For how many input shapes a CUDA graph is kept, which replays a run by one call; 0 for none. Each
            holds another copy of the weights and of a run's memory. None keeps up to 16 if the model can be recorded,
            and while half of the device's memory is free.
    """

    threads: int = 0
    runs: int = 1
    spinning: bool = True
    arena: bool = True
    cudnn_search: CudnnSearch = "heuristic"
    tf32: bool = False
    prove: bool = False
    channels_last: bool | None = None
    cuda_graphs: int | None = 0

    def beside(self, runs: int) -> "EngineOptions":
        """Return the options for each of several runs that go on side by side on the CPU and divide the threads."""
        return replace(self, threads=threads_beside(self.threads, runs))


DEFAULT_OPTIONS = EngineOptions()
PIPELINE_OPTIONS = replace(DEFAULT_OPTIONS, spinning=False)
"""For use in a pipeline that also decodes and writes images, whose cores spinning threads would take."""


@dataclass(frozen=True, eq=False)
class EngineOutput:
    """The outputs of the graph for a batch.

    Attributes:
        class_map: (N, H, W) uint8 or uint16.
        heatmap: (N, K, h, w) float32; (N, K, 0, 0) if it was not requested.
        confidence: (N, H, W) uint8, or None if it was not requested.
    """

    class_map: ClassMap
    heatmap: NDArray[np.float32]
    confidence: NDArray[np.uint8] | None


class Engine:
    """A model file opened on one device; `run` may be called from several threads.

    With `options.runs` above 1 it opens a second session on the CPU, for runs side by side, with another copy of the
    weights. On CUDA it opens a second session when confidences are first requested, and sets onnxruntime's default
    log, which belongs to the whole process, to fatal errors only.

    It can be used after `fork` on the CPU, and be pickled, as for `spawn`: since a session's threads exist only in the
    process that opened it, another process opens the file again.

    Args:
        path: The model file.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` (the first CUDA device where there is one, else the CPU).
        options: How it runs.

    Attributes:
        path: The model file.
        info: The metadata of the model file.
        device: Where it runs: `cpu` or `cuda:N`.
        options: How it runs.
        probe: Where each operator ran when it was opened, and the memory per pixel; None if not requested.

    Raises:
        ModelFileError: The file is not a valid fcnseg model.
        DeviceError: The device is not there or cannot run the whole model; the engine never falls back to another.
        UsageError: An option is out of range, or for CUDA alone, and the device is not.
    """

    path: Path
    info: ModelInfo
    device: str
    options: EngineOptions
    probe: Probe | None

    def __init__(self, path: str | Path, device: str = "auto", options: EngineOptions = DEFAULT_OPTIONS) -> None:
        self.path = path = Path(path)
        self.options = options
        self.device = resolve_device(device)
        _require_fit(options, self.device)
        require_model_file(path)
        self.info = try_out(path, threads_for(options.threads))
        if options.channels_last is None and self.device != "cpu":
            self.options = options = replace(options, channels_last=self.info.precision == "fp16")
        proving = options.prove or self.device != "cpu"
        with self._gate(), profile_folder(path) as folder:
            profiles = folder if proving else None
            session = _open_session(path, self.device, options, profiles)
            self._session: onnxruntime.InferenceSession | None = session
            self.probe = self._prove(session, path, profiles) if profiles is not None else None
        if self.probe is not None and self.device != "cpu":
            require_device(self.probe.placements, self.provider, self.device)
            with self._gate():
                self._session = session = _open_session(path, self.device, options, None, confidence=False)
        self._beside = self._open_beside()
        self._copies = open_copies(self.device)
        # Later sessions open these bytes, the file that was proved, even if the path names another file by then.
        self._data = None if self.device == "cpu" else _map(path)
        self._with_confidence: onnxruntime.InferenceSession | None = None
        self._opening = threading.Lock()
        self._closed = False
        self._graphs = None if self.device == "cpu" else self._open_graphs(options.cuda_graphs)
        _engines.add(self)

    def __getstate__(self) -> tuple[Path, str, EngineOptions]:
        return self.path, self.device, self.options

    def __setstate__(self, state: tuple[Path, str, EngineOptions]) -> None:
        self.__init__(*state)  # type: ignore[misc] # it is opened anew, as at first

    @property
    def provider(self) -> str:
        """The execution provider of the device."""
        return CPU if self.device == "cpu" else CUDA

    @property
    def precision(self) -> str:
        """Precision of the arithmetic: the model file's, or `tf32` if products of `fp32` may be rounded to it."""
        if self.info.precision != "fp32":
            return self.info.precision
        return "tf32" if self.options.tf32 and self.device != "cpu" else "fp32"

    @property
    def shares_threads(self) -> bool:
        """Whether a run by itself has more threads than one of several runs side by side."""
        return self._beside is not None

    def run(
        self, images: Images, *, confidence: bool = False, heatmap: bool = True, beside: bool = False
    ) -> EngineOutput:
        """Segment a batch of images of one size.

        Args:
            images: (N, H, W, 3) uint8 RGB, or N such images; N, H and W at least 1.
            confidence: Whether to compute the confidence map too.
            heatmap: Whether to return heatmaps, which take more memory than class maps if there are many classes.
            beside: Whether other runs go on side by side with this one, and the threads are divided (`options.runs`).

        Returns:
            Class maps at the images' own size, and heatmaps and confidences if requested.

        Raises:
            UsageError: The engine was closed.
            DeviceError: The device is a GPU, and this process was forked from the one that opened the model.
            ModelFileError: In a forked process: the path now holds another model.
        """
        session = (self._beside if beside else None) or self._session or self._open_again()
        names = [CLASS_MAP] + [HEATMAP] * heatmap + [CONFIDENCE] * confidence
        outputs = self._graphs.run(images, names) if self._graphs else None
        if outputs is None:
            if self.device == "cpu":
                asked = {"with_confidence": np.array(confidence)} if confidence else {}
                outputs = session.run(names, {"image": _together(images), **asked})
            else:
                session = self._confident_session() if confidence else session
                with self._gate():
                    outputs = run_bound(session, self.device, self._copies, images, names)
        found = dict(zip(names, outputs, strict=True))
        none = np.empty((len(images), len(self.info.label_map), 0, 0), np.float32)
        return EngineOutput(found[CLASS_MAP], found.get(HEATMAP, none), found.get(CONFIDENCE))

    def measured(self) -> Probe:
        """Return the result of the probe, which runs now if it did not when the engine was opened.

        Raises:
            ModelFileError: The model cannot be run.
        """
        if self.probe is None:
            with self._gate(), profile_folder(self.path) as folder:
                session = _open_session(self.path, self.device, replace(self.options, arena=True), folder)
                self.probe = self._prove(session, self.path, folder)
        return self.probe

    def record(
        self, images: NDArray[np.uint8], runs: int, *, confidence: bool = False
    ) -> tuple[list[Event], list[GraphNode]]:
        """Open the file again with onnxruntime's profiler on, and run it several times as `run` does.

        Args:
            images: As for `run`.
            runs: How often, at least 1.
            confidence: Whether to compute the confidence map too.

        Returns:
            The profiler's events, and the graph after optimisation: fused, laid out anew, with copies between devices.

        Raises:
            ModelFileError: The profile could not be written.
        """
        with self._gate(), profile_folder(self.path) as folder:
            graph = folder / "graph.onnx"
            session = _open_session(self.path, self.device, self.options, folder, graph=graph, confidence=confidence)
            asked = {value.name: np.array(confidence) for value in session.get_overridable_initializers()}
            for _ in range(runs):
                session.run(OUTPUTS if confidence else OUTPUTS[:2], {"image": images, **asked})
            return end_profiling(session, self.path), read_graph(graph)

    def close(self) -> None:
        """Free the model's sessions and device memory, while no CUDA graph is recorded; call it after the last run."""
        self._closed = True
        with self._gate():
            self._graphs = None
            self._session = self._beside = self._with_confidence = None

    def leave_session_behind(self) -> None:
        """Abandon the sessions, in a process that was forked from the one that opened them."""
        # They are never freed here: that would wait for threads that do not exist in this process.
        for held in (self._session, self._beside, self._with_confidence, self._graphs):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        self._session = self._beside = self._with_confidence = self._graphs = None

    def _confident_session(self) -> onnxruntime.InferenceSession:
        """Return the session on CUDA that computes confidences, which is opened on first use."""
        with self._opening:
            if self._with_confidence is None:
                with self._gate():
                    self._with_confidence = _open_session(self.path, self.device, self.options, None, data=self._data)
            return self._with_confidence

    def _gate(self) -> AbstractContextManager[None]:
        """Return the context in which the device may be used."""
        return nullcontext() if self.device == "cpu" else GATE.shared()

    def _open_graphs(self, limit: int | None) -> CudaGraphs | None:
        """Return the CUDA graphs for up to `limit` shapes; None for no graphs, or if the model cannot be recorded.

        Raises:
            DeviceError: It cannot be recorded, and a limit was given.
        """
        if limit == 0:
            return None
        most = _GRAPHS_UNASKED if limit is None else limit
        # Not a bound method: it would form a cycle with the engine, which the garbage collector might then free while
        # another model is recorded.
        open_session = partial(open_recording, self.device, self.options)
        try:
            graphs = CudaGraphs(self.path, self.device, most, open_session, sparing=limit is None)
            graphs.prove((1, *self.info.geometry.canonical(1, 1)))
        except DeviceError as error:
            if limit is not None:
                raise DeviceError(f"{error}; leave CUDA graphs out") from error
            _log.warning("%s; it runs without CUDA graphs", error)
            return None
        return graphs

    def _open_again(self) -> onnxruntime.InferenceSession:
        """Open the file in a forked process.

        Raises:
            UsageError: The engine was closed.
            DeviceError: The device is a GPU, which a forked process cannot use.
            ModelFileError: The path now holds another model.
        """
        if self._closed:
            raise UsageError(f"model {self.path} was closed, and cannot be run; load it again")
        if self.device != "cpu":
            raise DeviceError(
                f"device {self.device} cannot be used in a process forked from the one that opened the model; start"
                " workers by 'spawn', or load the model in each"
            )
        self._session = session = self._open_same(self.options)
        return session

    def _open_beside(self) -> onnxruntime.InferenceSession | None:
        """Open the session for runs side by side; None if they have as many threads as a run by itself."""
        alone, beside = self.options.beside(1), self.options.beside(self.options.runs)
        if self.device != "cpu" or beside.threads >= alone.threads:
            return None
        return self._open_same(beside)

    def _open_same(self, options: EngineOptions) -> onnxruntime.InferenceSession:
        """Open the file again.

        Raises:
            ModelFileError: The path now holds another model.
        """
        session = _open_session(self.path, self.device, options, None)
        if read_info(session, self.path) != self.info:
            raise ModelFileError(f"{self.path} has become another model since it was opened; load it again")
        return session

    def _prove(self, session: onnxruntime.InferenceSession, path: Path, profiles: Path) -> Probe:
        """Probe the session, or one with an arena if it has none, since only an arena reports the memory it holds."""
        if not self.options.arena:
            session.end_profiling()
            session = _open_session(path, self.device, replace(self.options, arena=True), profiles)
        try:
            return probe(session, self.info.geometry, path)
        except ModelFileError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            reason = one_line(error)
            raise ModelFileError(f"{path} cannot be run: {reason}; export the model again") from error


_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def _leave_sessions_behind() -> None:
    for engine in _engines:
        engine.leave_session_behind()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_sessions_behind)


def _together(images: Images) -> NDArray[np.uint8]:
    """Return a batch as one array; a single image is not copied."""
    if isinstance(images, np.ndarray):
        return images
    return np.stack(images) if len(images) > 1 else images[0][None]


def _require_fit(options: EngineOptions, device: str) -> None:
    """Check that options suit the device.

    Raises:
        UsageError: They do not.
    """
    if not 0 <= options.threads <= MOST_THREADS:
        raise UsageError(f"the number of threads is {options.threads}; it must be from 0 to {MOST_THREADS}")
    if options.runs < 1:
        raise UsageError(f"the number of runs at a time is {options.runs}; it must be at least 1")
    if options.cuda_graphs is not None and options.cuda_graphs < 0:
        raise UsageError(f"the number of CUDA graphs is {options.cuda_graphs}; it must be at least 0")
    for asked, name in ((options.channels_last, "the layout channels last"), (options.cuda_graphs, "CUDA graphs")):
        if asked and device == "cpu":
            raise UsageError(f"{name} cannot be had on the cpu; leave this out, or use --device cuda")


def open_recording(
    device: str, options: EngineOptions, path: Path, shape: Shape, stream: int | None
) -> onnxruntime.InferenceSession:
    """Open a specialised file for one input shape, to be recorded, in the CUDA stream of this handle if given."""
    cuda = {"enable_cuda_graph": "1"} | ({} if stream is None else {"user_compute_stream": str(stream)})
    return _open_file(path, device, options, None, None, shape, cuda)


def _open_session(
    path: Path,
    device: str,
    options: EngineOptions,
    profile_folder: Path | None,
    graph: Path | None = None,
    *,
    confidence: bool = True,
    data: memoryview | None = None,
) -> onnxruntime.InferenceSession:
    """Open a model file, or its bytes if they are given.

    On CUDA a session computes confidences either always or never: the branch in the model file has shapes that depend
    on data, which would make the device wait for the host.
    """
    if device == "cpu":
        return _open_file(path, device, options, profile_folder, graph)
    with tempfile.TemporaryDirectory(prefix="fcnseg-") as folder:
        specialised = Path(folder) / path.name
        write_specialised(_map(path) if data is None else data, specialised, confidence=confidence)
        return _open_file(specialised, device, options, profile_folder, graph)


def _map(path: Path) -> memoryview:
    """Return a file's bytes, memory-mapped: they stay the same even if the path comes to name another file."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _open_file(
    path: Path,
    device: str,
    options: EngineOptions,
    profile_folder: Path | None,
    graph: Path | None,
    shape: Shape | None = None,
    cuda_options: Mapping[str, str] = MappingProxyType({}),
) -> onnxruntime.InferenceSession:
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads_for(options.threads)
    session_options.log_severity_level = FATAL_ONLY
    session_options.enable_cpu_mem_arena = options.arena
    # A memory pattern planned ahead saves 1 to 3 % of a CPU run's time, and takes up to twice the memory.
    session_options.enable_mem_pattern = device != "cpu"
    session_options.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    # Work of an operator is split more finely, so that a thread whose core is busy elsewhere delays the others less.
    session_options.add_session_config_entry("session.dynamic_block_base", _BLOCKS_PER_THREAD)
    if profile_folder is not None:
        session_options.enable_profiling = True
        session_options.profile_file_prefix = str(profile_folder / "profile")
    if shape is not None:
        for name, size in zip(("N", "H", "W"), shape, strict=True):  # as the model file's `image` has them
            session_options.add_free_dimension_override_by_name(name, size)
    if graph is not None:
        session_options.optimized_model_filepath = str(graph)
    providers: list[str | tuple[str, dict[str, str]]] = [CPU]
    if device != "cpu":
        require_cuda(device)
        cuda = {
            "device_id": str(split_device(device)[1]),
            "cudnn_conv_algo_search": options.cudnn_search.upper(),
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": str(int(options.tf32)),
            "prefer_nhwc": str(int(bool(options.channels_last))),
            **cuda_options,
        }
        providers.insert(0, (CUDA, cuda))
    try:
        # With its fallback on, onnxruntime would retry without CUDA, and print to stdout.
        session = onnxruntime.InferenceSession(str(path), session_options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        reason = one_line(error)
        if device != "cpu" and "CUDA" in reason:
            raise DeviceError(f"device {device} cannot run {path}: {reason}; use --device cpu") from error
        raise ModelFileError(f"{path} is not an ONNX file that onnxruntime can open: {reason}") from error
    if device != "cpu" and CUDA not in session.get_providers():
        raise DeviceError(
            f"device {device} was asked for, but onnxruntime {onnxruntime.__version__} could not load its CUDA"
            " libraries; install 'onnxruntime-gpu[cuda,cudnn]' or use --device cpu"
        )
    return session

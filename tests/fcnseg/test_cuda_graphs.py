"""What of CUDA graphs can be seen without a GPU: on the CPU nothing is recorded, and all else is as on CUDA."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Never

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from fcnseg import cuda_graphs
from fcnseg.bound_run import BoundRun, Shape, open_copies
from fcnseg.capture_gate import GATE, CaptureGate
from fcnseg.cuda_copies import CudaCopies
from fcnseg.cuda_driver import free_share
from fcnseg.cuda_graphs import CudaGraphs
from fcnseg.engine import Engine, EngineOptions
from fcnseg.errors import DeviceError, UsageError
from fcnseg.model_file import CLASS_MAP, OUTPUTS
from tests.gpu import needs_gpu
from tests.stand_in_driver import StandInDriver, StreamSession
from tests.tiny_model import write_tiny_model

MASKS = OUTPUTS[:2]
GOLDEN = Path(__file__).parent.parent / "golden" / "scenes-fcn8s.onnx"


def images(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def open_on_cpu(path: Path, shape: Shape, _stream: int | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name, size in zip("NHW", shape, strict=True):
        options.add_free_dimension_override_by_name(name, size)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def graphs(tiny_model: Path) -> Callable[[int], CudaGraphs]:
    return lambda limit: CudaGraphs(tiny_model, "cpu", limit, open_on_cpu)


@pytest.mark.parametrize("confidence", [False, True])
def test_bound_runs_answer_as_plain_ones_do(*, confidence: bool) -> None:
    graphs = CudaGraphs(GOLDEN, "cpu", 4, open_on_cpu)
    engine = Engine(GOLDEN, "cpu", EngineOptions(threads=1))
    for seed, shape in enumerate([(1, 64, 96), (2, 64, 96), (1, 97, 131), (1, 64, 96)]):
        batch = images(*shape, seed=seed)
        answers = graphs.run(batch, OUTPUTS if confidence else MASKS)
        expected = engine.run(batch, confidence=confidence)
        assert answers is not None
        assert len(answers) == 2 + confidence
        assert np.array_equal(answers[0], expected.class_map)
        np.testing.assert_allclose(answers[1], expected.heatmap, rtol=0, atol=1e-5 * np.ptp(expected.heatmap))
        if expected.confidence is not None:
            assert np.abs(answers[2].astype(int) - expected.confidence).max() <= 1


def test_an_answer_is_not_touched_by_later_runs(graphs: Callable[[int], CudaGraphs]) -> None:
    shared = graphs(1)
    batches = [images(1, 8, 12, seed=seed) for seed in range(6)]
    answers = [shared.run(batch, OUTPUTS) for batch in batches]
    kept = [[array.copy() for array in answer] for answer in answers if answer is not None]
    for batch in reversed(batches):
        shared.run(batch, OUTPUTS)
    for answer, copies in zip(answers, kept, strict=True):
        assert answer is not None
        assert all(np.array_equal(a, b) for a, b in zip(answer, copies, strict=True))
    assert len({answer[0].tobytes() for answer in kept}) == len(batches)


def test_images_that_are_views_are_read_as_they_are(graphs: Callable[[int], CudaGraphs]) -> None:
    shared = graphs(2)
    whole = images(1, 8, 24)
    view = whole[:, :, ::2]
    from_view, from_copy = (shared.run(batch, MASKS) for batch in (view, view.copy()))
    assert from_view is not None
    assert from_copy is not None
    assert np.array_equal(from_view[0], from_copy[0])


def test_threads_may_share_recordings(graphs: Callable[[int], CudaGraphs], tiny_model: Path) -> None:
    shared, engine = graphs(2), Engine(tiny_model, "cpu", EngineOptions(threads=1))
    batches = [images(1, 8 + 4 * (seed % 3), 12, seed=seed) for seed in range(60)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda batch: shared.run(batch, MASKS), batches))
    recorded = [(answer, batch) for answer, batch in zip(answers, batches, strict=True) if answer is not None]
    assert len(recorded) > len(batches) // 3
    assert all(np.array_equal(answer[0], engine.run(batch).class_map) for answer, batch in recorded)


def test_a_bounded_number_of_shapes_is_kept_and_rare_ones_are_not_recorded(
    graphs: Callable[[int], CudaGraphs],
) -> None:
    shared = graphs(2)
    often, seldom, new = images(1, 8, 8), images(1, 8, 12), images(1, 12, 12)
    assert shared.run(seldom, MASKS) is not None
    assert shared.run(often, MASKS) is not None
    assert [shared.run(new, MASKS) is None for _ in range(8)] == [True] * 7 + [False]
    assert shared.shapes == [((1, 8, 8), False), ((1, 12, 12), False)]
    assert shared.run(seldom, MASKS) is None  # it made room
    assert shared.run(often, MASKS) is not None
    assert shared.shapes == [((1, 12, 12), False), ((1, 8, 8), False)]


def test_interleaved_shapes_are_opened_once_each(tiny_model: Path) -> None:
    opened: list[Shape] = []

    def open_noted(path: Path, shape: Shape, _stream: int | None) -> onnxruntime.InferenceSession:
        opened.append(shape)
        return open_on_cpu(path, shape)

    shared = CudaGraphs(tiny_model, "cpu", 2, open_noted)
    for _ in range(5):
        for width in (8, 12):
            shared.run(images(1, 8, width), MASKS)
    assert opened == [(1, 8, 8), (1, 8, 12)]


def test_shapes_that_come_in_turns_leave_each_other_alone_and_one_that_comes_no_more_makes_room(
    graphs: Callable[[int], CudaGraphs],
) -> None:
    shared = graphs(2)
    first, second, third, fourth = (images(1, 8, width) for width in (8, 12, 16, 20))
    for _ in range(20):
        answers = [shared.run(batch, MASKS) for batch in (first, second, third, fourth)]
        assert [answer is None for answer in answers] == [False, False, True, True]
    for _ in range(20):
        for batch in (first, third, fourth):
            shared.run(batch, MASKS)
    assert {shape for shape, _ in shared.shapes} in ({(1, 8, 8), (1, 8, 16)}, {(1, 8, 8), (1, 8, 20)})


def test_a_file_that_is_replaced_is_still_the_one_that_was_opened(tmp_path: Path) -> None:
    path, other = write_tiny_model(tmp_path / "m.onnx"), write_tiny_model(tmp_path / "other.onnx", class_count=2)
    graphs = CudaGraphs(path, "cpu", 2, open_on_cpu)
    expected = Engine(path, "cpu").run(images(1, 8, 8)).heatmap
    other.replace(path)
    answers = graphs.run(images(1, 8, 8), MASKS)
    assert answers is not None
    assert np.array_equal(answers[1], expected)


def test_a_shape_that_cannot_be_recorded_is_told_of_once_and_left(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = CudaGraphs(tiny_model, "cpu", 2, open_on_cpu)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    for _ in range(10):
        assert graphs.run(images(1, 8, 8), MASKS) is None
    (message,) = caplog.messages
    assert re.search(r"cannot record a run of .*\.onnx on 1 images of 8x8: .*No such file", message)
    monkeypatch.undo()
    assert graphs.run(images(1, 8, 12), MASKS) is not None
    assert graphs.run(images(1, 8, 8), MASKS) is None


def test_where_memory_is_spared_nothing_is_recorded_without_half_of_it_free(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sparing = CudaGraphs(tiny_model, "cpu", 2, open_on_cpu, sparing=True)  # of a device's memory the CPU has none
    for _ in range(3):
        assert sparing.run(images(1, 8, 12), MASKS) is None
    (told,) = caplog.messages
    assert "cannot record a run of" in told
    assert "more than 50% of its memory is taken; it is answered without" in told


@needs_gpu
def test_some_of_a_gpus_memory_is_free() -> None:
    assert 0 < free_share("cuda:0") <= 1


def test_what_cannot_be_recorded_is_told_in_one_line(tiny_model: Path) -> None:
    def open_for_another_size(path: Path, shape: Shape, _stream: int | None) -> onnxruntime.InferenceSession:
        return open_on_cpu(path, (shape[0], shape[1] + 4, shape[2]))  # a run fails, as a recording may

    graphs = CudaGraphs(tiny_model, "cpu", 2, open_for_another_size)
    with pytest.raises(DeviceError, match=r"cannot record a run of .*\.onnx on 1 images of 8x8: .") as raised:
        graphs.prove((1, 8, 8))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("version", ["1.29.0", "1.23.2"])
def test_an_onnxruntime_that_replays_what_is_not_its_own_records_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    graphs = CudaGraphs(tiny_model, "cpu", 1, open_on_cpu)
    graphs.prove((1, 8, 8))
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(DeviceError, match=f"CUDA graphs need onnxruntime 1.30 or later, .*; this is {version}"):
        graphs.prove((1, 8, 8))


def test_a_recording_that_answers_otherwise_than_a_run_is_refused(tiny_model: Path) -> None:
    class Stuck(onnxruntime.InferenceSession):
        """Goes on answering as it did when it was recorded, as a graph that does not read its input would."""

        def run_with_iobinding(
            self, iobinding: onnxruntime.IOBinding, run_options: onnxruntime.RunOptions | None = None
        ) -> None:
            assert run_options is not None
            if run_options.get_run_config_entry("gpu_graph_id") == "-1" or not iobinding.get_outputs():
                super().run_with_iobinding(iobinding, run_options)

    def open_stuck(path: Path, _shape: Shape, _stream: int | None) -> onnxruntime.InferenceSession:
        return Stuck(str(path), providers=["CPUExecutionProvider"])

    with pytest.raises(DeviceError, match=r"a replay's class_map differs from a plain run's in .*%"):
        CudaGraphs(tiny_model, "cpu", 1, open_stuck).prove((1, 8, 8))


def test_what_is_not_wanted_is_not_read(graphs: Callable[[int], CudaGraphs]) -> None:
    shared, batch = graphs(2), images(2, 8, 12)
    for outputs in ([CLASS_MAP], MASKS, OUTPUTS[::2], OUTPUTS):
        answers = shared.run(batch, outputs)
        assert answers is not None
        for name, answer in zip(outputs, answers, strict=True):
            assert answer.ndim == (4 if name == "heatmap" else 3)
    assert [confidence for _, confidence in shared.shapes] == [False, True]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> StandInDriver:
    """A stand-in, to and from whose memory bound runs copy."""
    driver = StandInDriver.put_in_place(monkeypatch)
    monkeypatch.setattr(cuda_graphs, "open_copies", lambda _: CudaCopies(0))
    return driver


def test_nothing_is_asked_of_the_driver_outside_the_gate(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gated(StandInDriver):
        def _answer(self, name: str, *arguments: Any) -> int:
            assert GATE._sharing or GATE._alone, f"{name} may spoil a recording"
            return super()._answer(name, *arguments)

    def open_in_stream(path: Path, _shape: Shape, stream: int | None) -> onnxruntime.InferenceSession:
        assert stream is not None
        return StreamSession(driver, stream, str(path), providers=["CPUExecutionProvider"])

    driver = Gated.put_in_place(monkeypatch)
    driver.codes["cuDevicePrimaryCtxRetain"] = 2
    assert open_copies("cuda:6") is None
    driver.codes.clear()
    with GATE.shared():
        copies = CudaCopies(0)
    monkeypatch.setattr(cuda_graphs, "open_copies", lambda _: copies)
    shared = CudaGraphs(tiny_model, "cpu", 1, open_in_stream)
    shared.prove((1, 8, 8))
    for _ in range(2):
        assert shared.run(images(1, 8, 12), MASKS) is not None


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("way", ["prove", "run"])
def test_what_is_not_kept_frees_the_device_within_the_gate(tiny_model: Path, way: str, *, fails: bool) -> None:
    alone: list[int] = []

    class Session(onnxruntime.InferenceSession):
        def __del__(self) -> None:
            alone.append(GATE._alone)

    def open_noted(path: Path, shape: Shape, _stream: int | None) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.add_free_dimension_override_by_name("H", shape[1] + 4 * fails)
        return Session(str(path), options, providers=["CPUExecutionProvider"])

    graphs = CudaGraphs(tiny_model, "cpu", 1, open_noted)
    with suppress(DeviceError):
        if way == "prove":
            graphs.prove((1, 8, 8))
        else:
            graphs.run(images(1, 8, 8), MASKS)
            for _ in range(8 * (not fails)):
                graphs.run(images(1, 8, 12), MASKS)
    assert alone == [1]


def test_runs_in_a_stream_are_not_waited_for_before_they_are_read(driver: StandInDriver) -> None:
    asked: list[bool] = []

    class Noted(StreamSession):
        def run_with_iobinding(self, iobinding: onnxruntime.IOBinding, run_options: Any = None) -> None:
            asked.append(driver.pending)  # what goes to the device
            super().run_with_iobinding(iobinding, run_options)

    def open_in_stream(path: Path, _shape: Shape, stream: int | None) -> onnxruntime.InferenceSession:
        assert stream is not None
        return Noted(driver, stream, str(path), providers=["CPUExecutionProvider"])

    shared, engine = CudaGraphs(GOLDEN, "cpu", 4, open_in_stream), Engine(GOLDEN, "cpu", EngineOptions(threads=1))
    batches = [images(1 + seed % 2, 64, 96, seed=seed) for seed in range(12)]
    shared.run(batches[0], MASKS)
    shared.run(batches[1], MASKS)
    asked.clear()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda batch: shared.run(batch, MASKS), batches))
    for batch, answer in zip(batches, answers, strict=True):
        assert answer is not None
        assert np.array_equal(answer[0], engine.run(batch).class_map)
    assert asked == [True] * len(batches)
    assert not driver.pending


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_was_interrupted_does_not_go_on_in_what_it_gave_back(
    tiny_model: Path, driver: StandInDriver, *, begun: bool
) -> None:
    class Replay(Future[None]):
        """Is waited for in vain, as Ctrl-C has it in the main thread."""

        def __init__(self, function: Callable[[], None]) -> None:
            super().__init__()
            self._function = function

        def result(self, timeout: float | None = None) -> Never:
            del timeout
            raise KeyboardInterrupt

        def cancel(self) -> bool:
            if begun:
                threading.Thread(target=self._end).start()
            return not begun and super().cancel()

        def _end(self) -> None:
            try:
                self._function()
            finally:
                self.set_result(None)

    asked: list[Replay] = []

    class Busy(Executor):
        def submit(self, function: Callable[..., Any], /, *_: Any, **__: Any) -> Replay:
            asked.append(Replay(function))
            return asked[-1]

    copies = CudaCopies(0)
    stream = copies.lend_stream(copies)
    session = StreamSession(driver, stream, str(tiny_model), providers=["CPUExecutionProvider"])
    run = BoundRun(session, "cpu", copies, (1, 8, 12), MASKS, stream=stream)
    with pytest.raises(KeyboardInterrupt):
        run.run(images(1, 8, 12), Busy())
    (replay,) = asked
    assert replay.done()
    assert replay.cancelled() is not begun
    assert not driver.pending


def test_a_model_for_which_no_stream_can_be_had_runs_without_recordings(
    tiny_model: Path, driver: StandInDriver, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(tiny_model, "cpu")
    driver.codes["cuStreamCreate"] = 2
    assert engine._open_graphs(None) is None
    (message,) = caplog.messages
    assert message == "the NVIDIA driver's cuStreamCreate failed with code 2; it runs without CUDA graphs"
    with pytest.raises(DeviceError, match="failed with code 2; leave CUDA graphs out"):
        engine._open_graphs(4)


def test_a_recording_that_is_not_in_our_stream_is_refused(tiny_model: Path, driver: StandInDriver) -> None:
    def open_elsewhere(path: Path, _shape: Shape, _stream: int | None) -> onnxruntime.InferenceSession:
        return StreamSession(driver, 99, str(path), providers=["CPUExecutionProvider"])

    with pytest.raises(DeviceError, match=r"a replay's class_map differs from a plain run's in .*%"):
        CudaGraphs(tiny_model, "cpu", 1, open_elsewhere).prove((1, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EngineOptions(cuda_graphs=4), "CUDA graphs cannot be had on the cpu; leave this out, or use --device cuda"),
        (EngineOptions(channels_last=True), "the layout channels last cannot be had on the cpu"),
        (EngineOptions(cuda_graphs=-1), "the number of CUDA graphs is -1; it must be at least 0"),
    ],
)
def test_what_only_cuda_has_is_refused_on_the_cpu(tiny_model: Path, options: EngineOptions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Engine(tiny_model, "cpu", options)


@needs_gpu
def test_on_a_gpu_runs_are_recorded_unasked_where_that_can_be() -> None:
    engine = Engine(GOLDEN, "cuda", EngineOptions(cuda_graphs=None))
    batch = images(2, 64, 96)
    assert np.array_equal(engine.run(list(batch)).class_map, engine.run(batch).class_map)
    assert engine._graphs is not None
    assert engine._graphs.shapes == [((2, 64, 96), False)]


@needs_gpu
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("confidence", [False, True])
def test_on_a_gpu_recorded_runs_give_the_cpus_classes(*, channels_last: bool, confidence: bool) -> None:
    plain = Engine(GOLDEN, "cpu")
    engine = Engine(GOLDEN, "cuda", EngineOptions(channels_last=channels_last, cuda_graphs=2))
    batches = [images(1, 64, 96 + 32 * (seed % 2), seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda batch: engine.run(batch, confidence=confidence), batches))
    for batch, answer in zip(batches, answers, strict=True):
        expected = plain.run(batch, confidence=confidence)
        assert np.mean(answer.class_map != expected.class_map) < 0.001  # where two classes are nearly equal
        assert (answer.confidence is None) is not confidence


def test_the_gate_lets_in_many_or_one() -> None:
    gate = CaptureGate()
    inside, entered = [], threading.Barrier(3)
    leave = threading.Event()

    def share() -> None:
        with gate.shared():
            entered.wait(10)
            leave.wait(10)
            inside.append("shared")

    def be_alone() -> None:
        with gate.alone():
            inside.append("alone")

    sharing = [threading.Thread(target=share) for _ in range(2)]
    for thread in sharing:
        thread.start()
    entered.wait(10)  # both are in
    alone = threading.Thread(target=be_alone)
    alone.start()
    leave.set()
    for thread in (*sharing, alone):
        thread.join(60)
    assert inside == ["shared", "shared", "alone"]
    with gate.alone():
        pass
    with gate.shared():
        pass

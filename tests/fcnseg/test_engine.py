import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fcnseg
from fcnseg.engine import Engine, EngineOptions
from fcnseg.errors import DeviceError, ModelFileError, UsageError
from tests.gpu import GPUS, needs_gpu
from tests.tiny_model import write_tiny_model

GOLDEN = Path(__file__).parent.parent / "golden" / "scenes-fcn8s.onnx"


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"missing\.onnx does not exist; make one with 'fcnseg heatmap'"):
        Engine(tmp_path / "missing.onnx", "cpu")
    for folder in (tmp_path, Path(), Path("/")):
        with pytest.raises(ModelFileError, match="is a folder"):
            Engine(folder, "cpu")
        with pytest.raises(ModelFileError, match="is a folder"):
            fcnseg.load(folder, "cpu")


@pytest.mark.parametrize("content", [b"", b"hello, world\n", bytes(range(256))])
def test_a_file_that_is_not_onnx_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"text\.onnx is not an ONNX file that onnxruntime can open") as raised:
        Engine(path, "cpu")
    assert "\n" not in str(raised.value)


def test_a_truncated_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    data = tiny_model.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path = tmp_path / "cut.onnx"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ModelFileError):
            Engine(path, "cpu")


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cuda:x", "cuda:-1", "cuda:²", "auto:1", ""])
def test_a_device_that_is_unknown_is_refused(tiny_model: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=r"unknown device .*; use cpu, cuda, cuda:N or auto"):
        Engine(tiny_model, device)


@pytest.mark.skipif(GPUS > 0, reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_without_a_gpu_cuda_is_refused_and_auto_takes_the_cpu(tiny_model: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=r"device cuda:\d was asked for, but .*; use --device cpu") as raised:
        Engine(tiny_model, device)
    assert "\n" not in str(raised.value)
    assert Engine(tiny_model, "auto").device == "cpu"


def test_runs_beside_each_other_share_the_threads_and_give_the_same_bytes() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 75, 110, 3), dtype=np.uint8)
    plain = Engine(GOLDEN, "cpu", EngineOptions(threads=1)).run(images, confidence=True)
    for threads, runs in ((2, 2), (4, 2), (4, 3)):
        engine = Engine(GOLDEN, "cpu", EngineOptions(threads=threads, runs=runs))
        assert engine.shares_threads
        for beside in (False, True):
            output = engine.run(images, confidence=True, beside=beside)
            for name in ("class_map", "heatmap", "confidence"):
                assert getattr(output, name).tobytes() == getattr(plain, name).tobytes()


def test_one_thread_cannot_be_shared_and_no_runs_are_refused(tiny_model: Path) -> None:
    assert not Engine(tiny_model, "cpu", EngineOptions(threads=1, runs=2)).shares_threads
    assert not Engine(tiny_model, "cpu", EngineOptions(threads=2)).shares_threads
    with pytest.raises(UsageError, match="the number of runs at a time is 0; it must be at least 1"):
        Engine(tiny_model, "cpu", EngineOptions(runs=0))


@pytest.mark.parametrize("threads", [-1, 1025, 100_000])
def test_threads_beyond_all_machines_are_refused(tiny_model: Path, threads: int) -> None:
    with pytest.raises(UsageError, match=f"the number of threads is {threads}; it must be from 0 to 1024"):
        Engine(tiny_model, "cpu", EngineOptions(threads=threads))


def test_an_engine_that_was_closed_stays_closed(tiny_model: Path) -> None:
    engine = Engine(tiny_model, "cpu", EngineOptions(threads=1))
    engine.close()
    with pytest.raises(UsageError, match=r"\.onnx was closed, and cannot be run; load it again"):
        engine.run(np.zeros((1, 5, 6, 3), np.uint8))


@needs_gpu
def test_with_a_gpu_auto_takes_it_and_gives_the_cpus_classes(tiny_model: Path) -> None:
    gpu = Engine(tiny_model, "auto")
    assert gpu.device == "cuda:0"
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 50, 3), dtype=np.uint8)
    assert np.array_equal(gpu.run(images).class_map, Engine(tiny_model, "cpu").run(images).class_map)


@pytest.mark.parametrize(("class_count", "dtype"), [(3, np.uint8), (300, np.uint16)])
def test_ids_have_the_dtype_of_their_number(tmp_path: Path, class_count: int, dtype: type[np.generic]) -> None:
    engine = Engine(write_tiny_model(tmp_path / "m.onnx", class_count=class_count), "cpu", EngineOptions(threads=1))
    assert engine.run(np.zeros((1, 5, 6, 3), np.uint8)).class_map.dtype == dtype


def test_confidence_is_computed_when_asked_for(tiny_model: Path) -> None:
    engine = Engine(tiny_model, "cpu", EngineOptions(threads=1))
    images = np.full((1, 6, 8, 3), (200, 10, 10), np.uint8)
    assert engine.run(images).confidence is None
    confidence = engine.run(images, confidence=True).confidence
    assert confidence is not None
    scores = np.array([200, 10, 10]) / 16
    assert confidence.shape == (1, 6, 8)
    assert np.unique(confidence).tolist() == [round(255 / np.exp(scores - scores.max()).sum())]


def test_threads_may_share_an_engine(tiny_model: Path) -> None:
    engine = Engine(tiny_model, "cpu", EngineOptions(threads=1))
    rng = np.random.default_rng(1)
    batches = [rng.integers(0, 256, (1, 20 + i, 30, 3), dtype=np.uint8) for i in range(16)]
    alone = [engine.run(batch).class_map for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = [output.class_map for output in pool.map(engine.run, batches)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_an_engine_with_recordings_is_freed_with_its_last_user(tiny_model: Path) -> None:
    engine = Engine(tiny_model, "cpu")
    engine._graphs = engine._open_graphs(1)  # on the CPU nothing is recorded, and all else is as on CUDA
    engine.run(np.zeros((1, 8, 12, 3), np.uint8))
    freed = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert freed() is None
    finally:
        gc.enable()

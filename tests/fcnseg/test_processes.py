"""A model goes with its program into threads and other processes."""

import gc
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fcnseg
from fcnseg.errors import DeviceError, ModelFileError
from fcnseg.segmenter import Segmenter
from tests.image_folders import noise
from tests.tiny_model import write_tiny_model

sources = [noise(12, 20 + seed, seed) for seed in range(12)]


@pytest.fixture(autouse=True)
def leftovers() -> Iterator[None]:
    """Keep other tests' garbage out of forked processes: gRPC's, when collected, waits for threads left behind."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def segmenter(tmp_path: Path) -> Segmenter:
    return fcnseg.load(write_tiny_model(tmp_path / "m.onnx"), "cpu", threads=2)


def class_map_of(job: tuple[Segmenter, int]) -> bytes:
    segmenter, index = job
    return segmenter.segment(sources[index]).class_map.tobytes()


def expected_of(segmenter: Segmenter) -> list[bytes]:
    return [segmenter.segment(source).class_map.tobytes() for source in sources]


def test_threads_may_share_a_segmenter(segmenter: Segmenter) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(class_map_of, [(segmenter, i) for i in range(len(sources))]))
    assert found == expected_of(segmenter)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_processes_may_be_given_a_segmenter(segmenter: Segmenter, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {method}")
    expected = expected_of(segmenter)
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        found = list(pool.map(class_map_of, [(segmenter, i) for i in range(len(sources))]))
    assert found == expected


@pytest.fixture
def child() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")


@pytest.mark.usefixtures("child")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_uses_its_parents_segmenter_and_ends(segmenter: Segmenter) -> None:
    expected = expected_of(segmenter)[0]
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, class_map_of((segmenter, 0)))
        segmenter.engine.leave_session_behind()  # nor is it freed when the process ends as others do
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == expected
    assert os.waitpid(pid, 0)[1] == 0
    assert expected_of(segmenter)[0] == expected, "the parent goes on as before"


@pytest.mark.usefixtures("child")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_file_that_has_become_another_model_is_not_taken_for_the_one_that_was_opened(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "m.onnx", class_names=("a", "b", "c"))
    segmenter.engine.leave_session_behind()
    with pytest.raises(ModelFileError, match="has become another model"):
        segmenter.segment(sources[0])


def test_a_gpu_is_not_used_after_a_fork(segmenter: Segmenter) -> None:
    segmenter.engine.device = "cuda:0"
    segmenter.engine.leave_session_behind()
    with pytest.raises(DeviceError, match="start workers by 'spawn'"):
        segmenter.engine.run(sources[0][None])


def test_a_pickled_segmenter_is_the_same_model_with_the_same_options(segmenter: Segmenter) -> None:
    found = pickle.loads(pickle.dumps(segmenter))  # noqa: S301 - our own bytes
    assert found.info == segmenter.info
    assert found.engine.options == segmenter.engine.options
    assert found.device == segmenter.device
    assert np.array_equal(found.segment(sources[0]).class_map, segmenter.segment(sources[0]).class_map)

"""Models that change while they are served."""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from fcnseg.client import Client
from fcnseg.engine import EngineOptions
from fcnseg.errors import FcnsegError, ModelFileError, ModelNotFoundError, RemoteModelNotFoundError
from fcnseg.segmenter import Segmenter, load
from serving.errors import StoppingError
from serving.oip import inference_pb2
from serving.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from serving.registry import ModelRegistry
from serving.server import ServerConfig
from tests.gated_segmenter import GatedSegmenter
from tests.process_memory import resident
from tests.running_server import CPU_CONFIG, RunningServer, running_server
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_until

IMAGE = np.full((4, 4, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    write_tiny_model(root / "cat" / "1" / "model.onnx", licence="first")
    return root


def put(repository: Path, version: int, licence: str) -> None:
    """Put a model into the repository at once, as one should."""
    path = repository / "cat" / str(version) / "model.onnx"
    beside = write_tiny_model(repository.parent / f"{licence}.onnx", licence=licence)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.replace(path)


def licence(registry: ModelRegistry, version: str = "") -> str | None:
    return registry.find("cat", version).info.licence


@contextmanager
def hammered(server: RunningServer, failures: list[FcnsegError]) -> Iterator[list[int]]:
    """Ask without pause from four threads, and without retries; gives the number of answers."""
    ended, answers = threading.Event(), [0]

    def ask() -> None:
        with Client(server.address, retries=0) as client:
            while not ended.is_set():
                try:
                    client.segment(IMAGE, model="cat")
                    answers[0] += 1
                except FcnsegError as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)


def test_models_are_replaced_under_load_without_a_failed_request(repository: Path) -> None:
    failures: list[FcnsegError] = []
    registry = ModelRegistry([repository], CPU_CONFIG)
    with running_server(registry) as server, hammered(server, failures) as answers:
        for i in range(8):
            put(repository, 1 + i % 2, f"number {i}")
            before = answers[0]
            registry.load("cat")
            assert licence(registry, str(1 + i % 2)) == f"number {i}"
            wait_until(lambda before=before: answers[0] > before + 8)
    assert not failures


def test_a_file_that_has_not_changed_stays_open(repository: Path) -> None:
    registry = ModelRegistry([repository], CPU_CONFIG)
    first = registry.find("cat", "1")
    put(repository, 2, "second")
    registry.load("cat")
    assert registry.find("cat", "1") is first
    assert licence(registry) == "second"
    registry.close()


def test_a_broken_model_is_told_and_all_stays_as_it_was(repository: Path) -> None:
    registry = ModelRegistry([repository], CPU_CONFIG)
    threads = set(threading.enumerate())
    put(repository, 2, "second")
    (repository / "cat" / "3").mkdir()
    (repository / "cat" / "3" / "model.onnx").write_bytes(b"broken")
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        registry.load("cat")
    assert [model.version for model in registry.models] == ["1"]
    assert set(threading.enumerate()) <= threads
    assert registry.unopened == {"cat"}
    shutil.rmtree(repository / "cat" / "2")
    shutil.rmtree(repository / "cat" / "3")
    registry.refresh()
    assert registry.unopened == set()
    registry.close()


def test_a_model_that_could_not_be_opened_is_forgotten_when_it_is_gone_or_unloaded(repository: Path) -> None:
    registry = ModelRegistry([repository], CPU_CONFIG)
    for name, version in (("cat", "2"), ("cow", "1"), ("dog", "1")):
        (repository / name / version).mkdir(parents=True)
        (repository / name / version / "model.onnx").write_bytes(b"broken")
        with pytest.raises(ModelFileError, match="not an ONNX file"):
            registry.load(name)
    assert registry.unopened == {"cat", "cow", "dog"}
    shutil.rmtree(repository / "dog")
    with pytest.raises(ModelNotFoundError, match="no model 'dog' in the repository"):
        registry.load("dog")
    assert registry.unopened == {"cat", "cow"}
    with pytest.raises(ModelNotFoundError, match="no model 'cow' on this server"):
        registry.unload("cow")
    assert registry.unopened == {"cat"}
    registry.unload("cat", "1")
    assert registry.unopened == set()
    registry.close()


def test_a_model_that_is_being_warmed_holds_a_closing_registry_up_for_one_run_alone(repository: Path) -> None:
    opened: list[GatedSegmenter] = []

    def open_segmenter(path: Path, *_: object, **__: object) -> GatedSegmenter:
        opened.append(GatedSegmenter(path))
        return opened[-1]

    registry = ModelRegistry([repository], replace(CPU_CONFIG, warm_sizes=((8, 8), (16, 16))), open_segmenter)
    put(repository, 2, "second")
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(registry.load, "cat")
        wait_until(lambda: len(opened) == 2)
        assert opened[1].begun.acquire(timeout=60)
        closing = threads.submit(registry.close)
        wait_until(registry._closing.is_set)
        opened[1].gate.set()
        closing.result(60)
        with pytest.raises(StoppingError, match="the server is stopping"):
            loading.result(60)
    assert len(opened[1].batches) == 1
    assert [model.version for model in registry.models] == ["1"]


def test_a_watching_server_serves_what_the_repository_holds(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = ModelRegistry([repository], CPU_CONFIG)
    with (
        caplog.at_level(logging.INFO, "serving"),
        running_server(registry, ServerConfig(watch_s=0.05)) as server,
        Client(server.address) as client,
    ):
        put(repository, 2, "second")
        wait_until(lambda: licence(registry) == "second")
        put(repository, 2, "changed")
        wait_until(lambda: licence(registry) == "changed")
        (repository.parent / "broken.onnx").write_bytes(b"broken")
        (repository.parent / "broken.onnx").replace(repository / "cat" / "2" / "model.onnx")
        wait_until(lambda: "not an ONNX file" in caplog.text)
        time.sleep(0.3)
        assert caplog.text.count("not an ONNX file") == 1
        assert client.get_model("cat").licence == "changed"
        (repository / "cat" / "2" / "model.onnx").unlink()
        wait_until(lambda: licence(registry) == "first")
        write_tiny_model(repository / "dog" / "7" / "model.onnx")
        wait_until(lambda: len(registry.models) == 2)
        assert client.segment(IMAGE, model="dog").model_version == "7"
        (repository / "cat" / "1" / "model.onnx").unlink()
        (repository / "cat" / "1").rmdir()
        (repository / "cat" / "2").rmdir()
        (repository / "cat").rmdir()
        wait_until(lambda: len(registry.models) == 1)
        with pytest.raises(RemoteModelNotFoundError, match="which serves dog"):
            client.segment(IMAGE, model="cat")


def test_a_repository_that_is_away_for_a_while_takes_nothing_from_service(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = ModelRegistry([repository], CPU_CONFIG)
    first = registry.find("cat", "1")
    away = repository.with_name("away")
    with running_server(registry, ServerConfig(watch_s=0.05)) as server, Client(server.address) as client:
        repository.rename(away)
        wait_until(lambda: "does not exist" in caplog.text)
        time.sleep(0.2)
        client.segment(IMAGE, model="cat")
        away.rename(repository)
        put(repository, 2, "second")
        wait_until(lambda: licence(registry) == "second")
        assert registry.find("cat", "1") is first


def test_a_folder_that_is_being_filled_concerns_only_itself(repository: Path) -> None:
    registry = ModelRegistry([repository], CPU_CONFIG)
    (repository / "unfinished").mkdir()
    put(repository, 2, "second")
    registry.load("cat")
    assert licence(registry) == "second"
    assert [source.name for source in registry.sources()] == ["cat", "cat"]
    registry.close()


def test_a_folder_with_a_fault_concerns_only_its_model(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = ModelRegistry([repository], CPU_CONFIG)
    put(repository, 2, "second")
    write_tiny_model(repository / "two\nlines" / "1" / "model.onnx")
    for _ in range(2):
        registry.refresh()
    assert licence(registry) == "second"
    assert registry.unopened == {"two\nlines"}
    assert caplog.text.count("is not a line of printable text; rename it") == 1
    with pytest.raises(ModelFileError, match="is not a line of printable text; rename it"):
        registry.load("two\nlines")
    put(repository, 3, "third")
    registry.load("cat")
    assert licence(registry) == "third"
    registry.close()
    again = ModelRegistry([repository], CPU_CONFIG, strict=False)
    assert ([model.version for model in again.models], again.unopened) == (["1", "2", "3"], {"two\nlines"})
    again.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
@pytest.mark.parametrize("closed", ["cat", "cat/1"])
def test_a_model_whose_folder_may_no_longer_be_read_goes_on(
    repository: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.parent.chmod(0o755)
    monkeypatch.chdir(repository.parent)  # whose own parents are root's alone
    write_tiny_model(repository / "dog" / "1" / "model.onnx")
    registry = ModelRegistry([Path("repository")], CPU_CONFIG)
    first = registry.find("cat", "1")
    (repository / closed).chmod(0o700)
    (repository / "dog").rename(repository.parent / "away")
    os.seteuid(65534)
    try:
        registry.refresh()
    finally:
        os.seteuid(0)
    assert registry.models == (first,)
    assert registry.unopened == {"cat"}
    registry.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_a_model_that_may_be_read_at_last_is_served(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    repository.parent.chmod(0o755)
    monkeypatch.chdir(repository.parent)  # whose own parents are root's alone
    registry = ModelRegistry([Path("repository")], CPU_CONFIG)
    put(repository, 2, "second")
    model = repository / "cat" / "2" / "model.onnx"

    def refresh() -> None:
        os.seteuid(65534)
        try:
            registry.refresh()
        finally:
            os.seteuid(0)

    model.chmod(0o600)
    refresh()
    refresh()
    assert (licence(registry), *registry.unopened) == ("first", "cat")
    assert caplog.text.count("the models stay as they were") == 1
    model.chmod(0o644)
    refresh()
    assert (licence(registry), *registry.unopened) == ("second",)
    registry.close()


def test_a_model_that_failed_for_a_reason_that_passes_is_served_though_its_files_are_as_they_were(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = ModelRegistry([repository], CPU_CONFIG)
    with running_server(registry, ServerConfig(watch_s=0.05)):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
        put(repository, 2, "second")
        wait_until(lambda: "the models stay as they were" in caplog.text)
        assert (licence(registry), registry.unopened) == ("first", {"cat"})
        (tmp_path / "full").mkdir()
        wait_until(lambda: licence(registry) == "second")
    assert (registry.unopened, caplog.text.count("the models stay as they were")) == (frozenset(), 1)


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(repository: Path) -> None:
    """Else runs that are alone may be of one model and those side by side of the next."""
    licences = ["second", "third"]

    def open_segmenter(path: Path, device: str, options: EngineOptions) -> Segmenter:
        segmenter = load(path, device, options=options)
        if licences:
            put(repository, 1, licences.pop(0))
        return segmenter

    registry = ModelRegistry([repository], CPU_CONFIG, open_segmenter)
    assert licence(registry) == "third"
    licences += ["fourth", "fifth", "sixth"]
    with pytest.raises(ModelFileError, match="model.onnx was changed while it was opened; load it when it is complete"):
        registry.reload("cat")
    assert licence(registry) == "third"
    registry.reload("cat")
    assert licence(registry) == "sixth"
    registry.close()


def test_a_file_that_the_runtime_fails_on_does_not_end_the_watch(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def open_segmenter(path: Path, device: str, options: EngineOptions) -> Segmenter:
        segmenter = load(path, device, options=options)
        if segmenter.info.licence == "hostile":
            raise RuntimeError("the runtime failed")
        return segmenter

    registry = ModelRegistry([repository], CPU_CONFIG, open_segmenter)
    with running_server(registry, ServerConfig(watch_s=0.05)):
        put(repository, 2, "hostile")
        wait_until(lambda: "the runtime failed" in caplog.text)
        time.sleep(0.3)
        assert caplog.text.count("the models stay as they were: the runtime failed") == 1
        assert licence(registry) == "first"
        put(repository, 2, "second")
        wait_until(lambda: licence(registry) == "second")


def test_the_inference_service_loads_what_has_changed(repository: Path) -> None:
    with running_server([repository]) as server, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        put(repository, 1, "changed")
        stub.RepositoryModelLoad(inference_pb2.RepositoryModelLoadRequest(model_name="cat"), timeout=10)
        with Client(server.address) as client:
            assert client.get_model("cat").licence == "changed"


@pytest.mark.slow
def test_memory_stays_flat_over_loads_and_unloads(repository: Path) -> None:
    """Broken files included."""
    registry = ModelRegistry([repository], CPU_CONFIG)

    after = []
    for i in range(50):
        put(repository, 1, f"number {i}")
        registry.load("cat")
        (repository / "cat" / "2").mkdir(exist_ok=True)
        (repository / "cat" / "2" / "model.onnx").write_bytes(b"broken")
        with pytest.raises(ModelFileError):
            registry.load("cat")
        (repository / "cat" / "2" / "model.onnx").unlink()
        registry.unload("cat")
        after.append(resident())
    registry.close()
    assert after[-1] < 1.05 * after[4]

"""What is served changes by explicit order, through our own service as through the Open Inference Protocol's."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto

from fcnseg import AsyncClient, Client
from fcnseg.commands.models import models
from fcnseg.engine import EngineOptions
from fcnseg.errors import (
    FcnsegError,
    InvalidRequestError,
    PermissionDeniedError,
    RemoteModelFileError,
    RemoteModelNotFoundError,
    UsageError,
)
from fcnseg.remote import RemoteModel
from fcnseg.segmenter import Segmenter, load
from serving.admin_servicer import SERVICE
from serving.oip import inference_pb2 as oip
from serving.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from serving.registry import ModelRegistry
from serving.security import Security
from serving.server import ServerConfig
from tests.running_server import CPU_CONFIG, RunningServer, running_server
from tests.scraping import scrape
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_until

RED = np.full((4, 4, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    put(root, "cat", 1, licence="first")
    put(root, "dog", 3)
    return root


@pytest.fixture
def registry(repository: Path) -> ModelRegistry:
    return ModelRegistry([repository], CPU_CONFIG)


@pytest.fixture
def server(registry: ModelRegistry) -> Iterator[RunningServer]:
    with running_server(registry) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.address, retries=0) as opened:
        yield opened


def put(repository: Path, name: str, version: int, *, licence: str | None = None) -> Path:
    """Put a model into the repository at once."""
    beside = write_tiny_model(repository.parent / "new.onnx", licence=licence)
    return put_file(repository, name, version, beside)


def put_file(repository: Path, name: str, version: int, file: Path) -> Path:
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    return file.replace(path)


def put_hostile(repository: Path, name: str, version: int) -> Path:
    """Put a model there whose weights lie in another file, which is there too."""
    path = write_tiny_model(repository.parent / "hostile.onnx")
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.HasField("raw_data") and len(t.raw_data) > 8)
    weights, tensor.data_location = tensor.raw_data, TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="weights.bin")
    path.write_bytes(model.SerializeToString())
    path = put_file(repository, name, version, path)
    path.with_name("weights.bin").write_bytes(weights)
    return path


def told(served: tuple[RemoteModel, ...]) -> list[tuple[str, str]]:
    return [(model.name, model.version) for model in served]


def test_a_new_version_is_loaded_and_told(repository: Path, client: Client) -> None:
    put(repository, "cat", 2, licence="second")
    served = client.load_model("cat")
    assert told(served) == [("cat", "1"), ("cat", "2"), ("dog", "3")]
    assert (served[1].device, served[1].licence) == ("cpu", "second")
    assert client.list_models() == served
    assert client.segment(RED, model="cat").model_version == "2"


def test_versions_are_unloaded_one_by_one_or_all_and_loaded_again(repository: Path, client: Client) -> None:
    put(repository, "cat", 2)
    client.load_model("cat")
    assert told(client.unload_model("cat", "2")) == [("cat", "1"), ("dog", "3")]
    assert client.segment(RED, model="cat").model_version == "1"
    assert told(client.unload_model("cat")) == [("dog", "3")]
    with pytest.raises(RemoteModelNotFoundError, match="no model 'cat' on this server, which serves dog"):
        client.segment(RED, model="cat")
    assert told(client.load_model("cat")) == [("cat", "1"), ("cat", "2"), ("dog", "3")]


def test_a_model_is_opened_anew_though_its_file_is_the_same(registry: ModelRegistry, client: Client) -> None:
    first = registry.find("cat", "1")
    client.load_model("cat")
    assert registry.find("cat", "1") is first
    client.reload_model("cat")
    assert registry.find("cat", "1") is not first
    client.segment(RED, model="cat")


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (lambda client: client.load_model("cow"), "no model 'cow' in the repository"),
        (lambda client: client.unload_model("cow"), "no model 'cow' on this server, which serves cat, dog"),
        (lambda client: client.unload_model("cat", "9"), "no version '9' of model 'cat', whose versions are 1"),
        (lambda client: client.reload_model("cow"), "no model 'cow' on this server, which serves cat, dog"),
    ],
)
def test_what_is_not_there_is_told(client: Client, order: Callable[[Client], object], words: str) -> None:
    with pytest.raises(RemoteModelNotFoundError, match=words):
        order(client)


def test_a_request_that_names_no_model_is_told_its_field(client: Client) -> None:
    for order in (client.load_model, client.unload_model, client.reload_model):
        with pytest.raises(InvalidRequestError) as caught:
            order("")
        assert caught.value.field == "model_name"


def test_a_model_that_is_gone_from_the_repository_cannot_be_reloaded(repository: Path, client: Client) -> None:
    (repository / "cat" / "1" / "model.onnx").unlink()
    with pytest.raises(RemoteModelNotFoundError, match="no model 'cat' in the repository"):
        client.reload_model("cat")
    client.segment(RED, model="cat")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"broken", r"version 2 is not an ONNX file that onnxruntime can open: \w"),
        (b"", "version 2 is not an ONNX file"),
        (None, "version 2 was refused unread: it holds data that lies in another file; export the model again"),
    ],
)
def test_a_broken_version_is_refused_with_its_reason_and_the_old_one_stays(
    repository: Path, client: Client, caplog: pytest.LogCaptureFixture, content: bytes | None, words: str
) -> None:
    path = put_hostile(repository, "cat", 2)
    if content is not None:
        path.write_bytes(content)
    before = client.list_models()
    for order in (client.load_model, client.reload_model):
        with pytest.raises(RemoteModelFileError, match=f"model 'cat' stays as it was: {words}") as caught:
            order("cat")
        assert str(repository) not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert client.list_models() == before
    client.segment(RED, model="cat")
    (warning, _) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage().startswith(f"model 'cat' stays as it was: {path} ")


def test_a_reason_that_would_tell_the_servers_folders_stays_in_its_log(
    repository: Path, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    away = repository.with_name("away")
    repository.rename(away)
    with pytest.raises(RemoteModelFileError) as caught:
        client.load_model("cat")
    assert str(caught.value).endswith(": model 'cat' stays as it was: the server's log tells why")
    assert f"{repository} does not exist" in caplog.text


def test_a_reason_that_names_no_file_is_told(repository: Path) -> None:
    small = replace(CPU_CONFIG, warm_sizes=((200, 300),), max_memory=64 << 20)
    with running_server(ModelRegistry([repository], small)) as server, Client(server.address, retries=0) as client:
        put_file(repository, "cat", 2, write_tiny_model(repository.parent / "new.onnx", class_count=64))
        with pytest.raises(
            RemoteModelFileError, match=r"as it was: images of 200x300 cannot be run .*; warm a smaller size, or allow"
        ):
            client.load_model("cat")


def test_both_protocols_refuse_alike(repository: Path, server: RunningServer, client: Client) -> None:
    put_hostile(repository, "cat", 2)
    with pytest.raises(RemoteModelFileError) as ours:
        client.load_model("cat")
    with grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        with pytest.raises(grpc.RpcError) as theirs:
            stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="cat"), timeout=10)
    assert isinstance(theirs.value, grpc.Call)
    assert theirs.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert str(ours.value) == f"server {server.address}: {theirs.value.details()}"


async def test_the_async_client_gives_the_same_orders(repository: Path, server: RunningServer) -> None:
    put(repository, "cat", 2)
    async with AsyncClient(server.address) as client:
        both = [("cat", "1"), ("cat", "2"), ("dog", "3")]
        assert told(await client.load_model("cat")) == both
        assert told(await client.reload_model("cat")) == both
        assert told(await client.unload_model("cat", "1")) == both[1:]
        assert told(await client.unload_model("cat")) == both[2:]
        with pytest.raises(RemoteModelNotFoundError):
            await client.unload_model("cat")
    with pytest.raises(UsageError, match="has been closed"):
        await client.load_model("cat")


def test_no_request_fails_while_models_are_replaced(repository: Path, server: RunningServer, client: Client) -> None:
    failures: list[FcnsegError] = []
    ended, answers = threading.Event(), [0]

    def ask() -> None:
        with Client(server.address, retries=0) as asking:
            while not ended.is_set():
                try:
                    asking.segment(RED, model="cat")
                    answers[0] += 1
                except FcnsegError as error:
                    failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for i in range(5):
            before = answers[0]
            put(repository, "cat", 1 + i % 2, licence=f"number {i}")
            client.load_model("cat")
            put_hostile(repository, "cat", 9)
            with pytest.raises(RemoteModelFileError):
                client.load_model("cat")
            (repository / "cat" / "9" / "model.onnx").unlink()
            client.reload_model("cat")
            wait_until(lambda before=before: answers[0] > before + 5)
    finally:
        ended.set()
        thread.join(60)
    assert not failures


def test_a_server_that_stops_opens_nothing_more_for_those_who_wait(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than threads: else the end itself would wait for one."""
    opening, gate, opened = threading.Event(), threading.Event(), []

    def open_segmenter(path: Path, device: str, options: EngineOptions) -> Segmenter:
        opened.append(path)
        if len(opened) > 1:
            opening.set()
            assert gate.wait(60)
        return load(path, device, options=options)

    registry = ModelRegistry([repository / "cat" / "1" / "model.onnx"], CPU_CONFIG, open_segmenter)
    reload, reloading = registry.reload, []

    def counted(name: str) -> None:
        reloading.append(name)
        reload(name)

    monkeypatch.setattr(registry, "reload", counted)
    with (
        running_server(registry) as server,
        Client(server.address, retries=0) as client,
        ThreadPoolExecutor(40) as threads,
    ):
        orders = [threads.submit(client.reload_model, "model") for _ in range(40)]
        assert opening.wait(60)
        wait_until(lambda: len(reloading) > 1)
        server.begin_stop()
        wait_until(registry._closing.is_set)
        gate.set()
        server.wait_stopped()
        failures = [str(order.exception(60)) for order in orders]
    assert len(opened) == 2
    assert f"server {server.address}: the server is stopping; ask another to open the model" in failures


def test_health_and_metrics_know_the_service(repository: Path, registry: ModelRegistry) -> None:
    with running_server(registry, ServerConfig(http_port=0)) as server:
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with Client(server.address) as client:
            client.reload_model("cat")
        reloads = {"method": "fcnseg.v1.ModelAdminService/ReloadModel", "code": "OK"}
        wait_until(lambda: scrape(server).value("fcnseg_requests_total", **reloads) == 1)


def test_a_watching_server_refuses_a_hostile_file_once_and_keeps_the_old(
    repository: Path, registry: ModelRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with running_server(registry, ServerConfig(watch_s=0.05)) as server, Client(server.address) as client:
        before = client.list_models()
        path = put_hostile(repository, "cat", 2)
        wait_until(lambda: "was refused unread" in caplog.text)
        time.sleep(0.3)
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert record.getMessage() == (
            f"the models stay as they were: {path} was refused unread: it holds data that lies in another file; export"
            " the model again"
        )
        assert client.list_models() == before
        client.segment(RED, model="cat")


def run(server: RunningServer, *arguments: str) -> str:
    result = CliRunner().invoke(models, [*arguments, "--server", server.address])
    if result.exception:
        raise result.exception
    return result.stdout


def test_the_command_lists_loads_reloads_and_unloads(repository: Path, server: RunningServer) -> None:
    (row,) = [line for line in run(server, "list").splitlines() if " cat " in line]
    assert row.split() == ["cat", "1", "cpu", "heatmap", "of", "tiny", "3:", "red,", "green,", "blue"]
    put(repository, "cat", 2)
    assert run(server, "load", "cat").count(" cat ") == 2
    assert run(server, "reload", "cat").count(" cat ") == 2
    assert run(server, "unload", "cat", "--version", "1").count(" cat ") == 1
    run(server, "unload", "cat")
    assert run(server, "unload", "dog") == "no model is served; load one with 'fcnseg models load NAME'\n"
    with pytest.raises(RemoteModelNotFoundError, match="no model 'cow'"):
        run(server, "load", "cow")


def test_the_command_is_refused_where_changes_are(registry: ModelRegistry) -> None:
    with running_server(registry, ServerConfig(security=Security(admin_closed_by="--no-admin"))) as server:
        assert "cat" in run(server, "list")
        with pytest.raises(PermissionDeniedError, match="LoadModel was refused: .*--no-admin"):
            run(server, "load", "cat")


CYCLES = """
import sys
from pathlib import Path
from fcnseg import Client
from fcnseg.errors import RemoteModelFileError
from tests.process_memory import resident
from tests.running_server import running_server
from tests.serving.test_model_admin import RED, put, put_hostile

repository, held = Path(sys.argv[1]), []
with running_server([repository]) as server, Client(server.address) as client:
    for i in range(50):
        put(repository, "cat", 1, licence=f"number {i}")
        client.load_model("cat")
        client.segment(RED, model="cat")
        hostile = put_hostile(repository, "cat", 2)
        for content in (None, b"broken"):
            if content:
                hostile.write_bytes(content)
            try:
                client.load_model("cat")
            except RemoteModelFileError:
                continue
            raise SystemExit("a broken file was loaded")
        hostile.unlink()
        client.reload_model("cat")
        client.unload_model("cat")
        held.append(resident())
print(held[4], held[49])
"""


@pytest.mark.slow
def test_memory_stays_flat_over_orders(repository: Path) -> None:
    """Fifty times loaded, refused twice, reloaded and unloaded, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CYCLES, repository],
        capture_output=True, text=True, timeout=300, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    early, late = map(int, done.stdout.split())
    assert late < 1.05 * early

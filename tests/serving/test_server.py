import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fcnseg.client import Client
from fcnseg.engine import EngineOptions
from fcnseg.errors import RequestError, UsageError
from fcnseg.segmenter import Segmenter, load
from serving.oip.servicer import SERVICE as INFERENCE_SERVICE
from serving.registry import ModelRegistry
from serving.server import SERVICE, ServerConfig
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.running_server import CPU_CONFIG, RunningServer, running_server
from tests.server_process import free_port
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_until

IMAGE = np.full((4, 4, 3), (255, 0, 0), np.uint8)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def segmenter(tiny_model: Path) -> GatedSegmenter:
    return GatedSegmenter(tiny_model)


def test_health_check_answers_for_the_server_and_the_service(tiny_model: Path) -> None:
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_is_not_serving_until_the_models_are_warm(segmenter: GatedSegmenter, tiny_model: Path) -> None:
    registry = registry_of(segmenter, tiny_model, replace(CPU_CONFIG, warm_sizes=((8, 12),)))
    port = free_port()
    with ThreadPoolExecutor() as pool, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        starting = pool.submit(RunningServer, registry, ServerConfig(port=port))
        assert segmenter.begun.acquire(timeout=60)
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE, INFERENCE_SERVICE):
            request = health_pb2.HealthCheckRequest(service=service)
            assert health.Check(request, timeout=10, wait_for_ready=True).status == NOT_SERVING
        segmenter.gate.set()
        server = starting.result(60)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
        sizes = [[image.shape[:2] for image in batch] for batch in segmenter.batches]
        assert sizes == [[(8, 12)]] * 2 + [[(8, 12)] * 8] * 2
        with Client(server.address) as client:
            client.segment(np.zeros((8, 12, 3), np.uint8))
            assert (client.get_model().warm_sizes, client.get_model().cold_sizes) == (((8, 12),), 0)
            client.segment(np.zeros((40, 12, 3), np.uint8))
            assert client.get_model().cold_sizes == 1
        server.stop()


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_watch_sees_the_end_and_does_not_hold_it_up(tiny_model: Path, service: str) -> None:
    with (
        running_server(tiny_model, ServerConfig(grace_s=600)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)
        assert next(watch).status == SERVING
        server.begin_stop()
        assert next(watch).status == NOT_SERVING
        server.wait_stopped()


def test_reflection_lists_and_describes_the_services(tiny_model: Path) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, described = list(stub.ServerReflectionInfo(iter(requests), timeout=10))
    assert {s.name for s in listed.list_services_response.service} == {
        "fcnseg.v1.ModelAdminService",
        "fcnseg.v1.SegmentationService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    }
    assert b"SegmentRequest" in described.file_descriptor_response.file_descriptor_proto[0]


def test_request_under_way_is_finished_and_new_ones_are_refused_when_stopping(
    segmenter: GatedSegmenter, tiny_model: Path
) -> None:
    with (
        running_server(registry_of(segmenter, tiny_model), ServerConfig(grace_s=20)) as server,
        Client(server.address) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        answer = thread.submit(client.segment, IMAGE)
        assert segmenter.begun.acquire(timeout=60)
        server.begin_stop()
        wait_until_refused(server.address)
        assert not answer.done()
        segmenter.gate.set()
        assert answer.result(60).class_map.tolist() == [[0] * 4] * 4
        server.wait_stopped()


class SlowLine:
    """A TCP line to a server, which carries a number of bytes to it at once, and the others when its gate is open."""

    def __init__(self, server: str, at_once: int) -> None:
        host, _, port = server.rpartition(":")
        self.gate = threading.Event()
        self.held = threading.Event()
        self._at_once = at_once
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._there = socket.create_connection((host, int(port)))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._carry, daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self._listener.close()
        self._there.close()

    def _carry(self) -> None:
        with suppress(OSError):
            here, _ = self._listener.accept()
            threading.Thread(target=self._carry_back, args=(here,), daemon=True).start()
            carried = 0
            while data := here.recv(4096):
                if carried + len(data) > self._at_once:
                    self.held.set()
                    assert self.gate.wait(60)
                self._there.sendall(data)
                carried += len(data)

    def _carry_back(self, here: socket.socket) -> None:
        with suppress(OSError), here:
            while data := self._there.recv(65536):
                here.sendall(data)


def test_request_whose_image_is_still_on_its_way_is_answered_when_stopping(tiny_model: Path) -> None:
    image = np.full((300, 400, 3), (0, 255, 0), np.uint8)
    with (
        running_server(tiny_model, ServerConfig(grace_s=20)) as server,
        closing(SlowLine(server.address, 16_000)) as line,
        Client(line.address, retries=0) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        answer = thread.submit(client.segment, image)
        assert line.held.wait(60)
        time.sleep(0.1)  # what was carried has come
        server.begin_stop()
        wait_until_refused(server.address)
        time.sleep(0.2)
        line.gate.set()
        assert (answer.result(60).class_map == 1).all()
        server.wait_stopped()


def test_open_reflection_does_not_hold_up_the_end(tiny_model: Path) -> None:
    asked = threading.Event()

    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        asked.wait(60)

    with (
        running_server(tiny_model, ServerConfig(grace_s=600)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests(), timeout=60)
        next(answers)
        server.stop()
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        asked.set()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def wait_until_refused(address: str) -> None:
    def is_refused() -> bool:
        try:
            with Client(address, retries=0) as other:
                other.list_models()
        except RequestError as error:
            # A call that arrives in the very moment of the stop is cancelled by gRPC, later ones find no server.
            assert error.code in {"UNAVAILABLE", "CANCELLED"}  # noqa: PT017 - the wait ends by it
            return error.code == "UNAVAILABLE"
        return False

    wait_until(is_refused, tell=lambda: "the stopping server still took requests")


def test_request_that_outlasts_the_grace_is_cut_off(segmenter: GatedSegmenter, tiny_model: Path) -> None:
    with (
        running_server(registry_of(segmenter, tiny_model), ServerConfig(grace_s=0.3)) as server,
        Client(server.address) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        answer = thread.submit(client.segment, IMAGE)
        assert segmenter.begun.acquire(timeout=60)
        server.begin_stop()
        error = answer.exception(60)
        segmenter.gate.set()
        assert isinstance(error, RequestError)
        assert error.code in {"UNAVAILABLE", "CANCELLED"}


def test_request_whose_deadline_passes_while_it_waits_is_never_run(segmenter: GatedSegmenter, tiny_model: Path) -> None:
    registry = registry_of(segmenter, tiny_model)
    admission = registry.models[0].admission
    with (
        running_server(registry) as server,
        Client(server.address) as client,
        Client(server.address, timeout_s=1) as hasty,
        ThreadPoolExecutor(2) as threads,
    ):
        first = threads.submit(client.segment, IMAGE)
        assert segmenter.begun.acquire(timeout=60)
        second = threads.submit(hasty.segment, IMAGE)
        wait_until(lambda: admission.pending == 2 or second.done())
        with pytest.raises(RequestError, match="within 1 s") as caught:
            second.result(60)
        assert caught.value.code == "DEADLINE_EXCEEDED"
        wait_until(lambda: admission.pending == 1)  # the server's own clock ends the call a moment later
        segmenter.gate.set()
        first.result(60)
        client.segment(IMAGE)
    assert len(segmenter.batches) == 2


def test_request_cancelled_by_its_client_while_it_waits_is_never_run(
    segmenter: GatedSegmenter, tiny_model: Path
) -> None:
    registry = registry_of(segmenter, tiny_model)
    admission = registry.models[0].admission
    with (
        running_server(registry) as server,
        Client(server.address) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        first = threads.submit(client.segment, IMAGE)
        assert segmenter.begun.acquire(timeout=60)
        leaver = Client(server.address)
        second = threads.submit(leaver.segment, IMAGE)
        wait_until(lambda: admission.pending == 2)
        leaver.close()
        error = second.exception(60)
        assert isinstance(error, RequestError)
        assert error.code == "CANCELLED"
        wait_until(lambda: admission.pending == 1)
        segmenter.gate.set()
        first.result(60)
        client.segment(IMAGE)
    assert len(segmenter.batches) == 2


def test_models_answer_side_by_side(tmp_path: Path, segmenter: GatedSegmenter, tiny_model: Path) -> None:
    """A model that is busy holds up nobody else's."""
    path = write_tiny_model(tmp_path / "free.onnx")

    def open_segmenter(opened: Path, device: str, *, options: EngineOptions) -> Segmenter:
        return load(path, device, options=options) if opened == path else segmenter

    registry = ModelRegistry([tiny_model, path], CPU_CONFIG, open_segmenter)
    with (
        running_server(registry) as server,
        Client(server.address) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        held = thread.submit(client.segment, IMAGE, model="tiny")
        assert segmenter.begun.acquire(timeout=60)
        assert client.segment(IMAGE, model="free").model_name == "free"
        assert not held.done()
        segmenter.gate.set()
        assert held.result(60).model_name == "tiny"


def test_many_clients_at_once_get_their_own_answers(tiny_model: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [np.full((5 + i % 7, 9 + i % 5, 3), colours[i % 3], np.uint8) for i in range(60)]
    with running_server(tiny_model) as server, Client(server.address) as client, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(client.segment, images))
    for i, (image, answer) in enumerate(zip(images, answers, strict=True)):
        assert answer.class_map.shape == image.shape[:2]
        assert np.unique(answer.class_map).tolist() == [i % 3]


def test_port_in_use_is_told_with_the_remedy(segmenter: GatedSegmenter, tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} of 127\.0\.0\.1 is in use; .*--port 0"):
            RunningServer(registry_of(segmenter, tiny_model), ServerConfig(port=port))


def test_two_servers_never_share_a_port(tiny_model: Path) -> None:
    with running_server(tiny_model) as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(UsageError, match="in use"), running_server(tiny_model, ServerConfig(port=port)):
            pass


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 64])
def test_host_that_is_no_address_is_told(segmenter: GatedSegmenter, tiny_model: Path, host: str) -> None:
    with pytest.raises(UsageError, match=f"host '{host}': it is not an address"):
        RunningServer(registry_of(segmenter, tiny_model), ServerConfig(host=host))

import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fcnseg.client import Client
from fcnseg.errors import ServerUnavailableError, UsageError
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.connections import ConnectionConfig
from serving.server import ServerConfig
from tests import http2
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.running_server import running_server
from tests.server_process import free_port, server_process
from tests.waiting import wait_until

IMAGE = np.full((4, 4, 3), (255, 0, 0), np.uint8)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # length, type SETTINGS, no flags, stream 0


def test_a_client_that_answers_no_ping_is_dropped(tiny_model: Path) -> None:
    config = ServerConfig(connections=ConnectionConfig(keepalive_s=1, keepalive_timeout_s=1))
    with running_server(tiny_model, config) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port))) as dead:
            dead.sendall(PREFACE + EMPTY_SETTINGS)
            dead.settimeout(60)
            began = time.monotonic()
            while dead.recv(4096):
                pass
            assert time.monotonic() - began > 1


@pytest.mark.parametrize("greeting", [b"", PREFACE[:10], PREFACE])
def test_a_client_that_does_not_greet_is_dropped(tiny_model: Path, greeting: bytes) -> None:
    """It would keep others out, of whom there may be so many."""
    config = ServerConfig(connections=ConnectionConfig(keepalive_timeout_s=1))
    with running_server(tiny_model, config) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=45) as silent:
            silent.sendall(greeting)
            while silent.recv(4096):
                pass


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize(
    "method", ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch", "fcnseg.v1.SegmentationService/Segment"]
)
def test_a_compressed_message_is_refused_before_it_is_unpacked(
    tiny_model: Path, method: str, compression: grpc.Compression
) -> None:
    """A few of them, sent by anybody to health, would take all memory."""
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary(f"/{method}")
        with pytest.raises(grpc.RpcError, match="Compression algorithm '[a-z]+' is disabled") as caught:
            call(bytes(1 << 20), compression=compression, timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["\udcff/\udcff", "fcnseg.v1.SegmentationService/\udcff", "\udcff"])
def test_a_method_whose_name_is_no_text_ends_nothing_but_its_call(tiny_model: Path, method: str) -> None:
    """grpcio 1.84 and 1.85 answer nobody after it."""
    with running_server(tiny_model) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as stranger:
            stranger.sendall(http2.greeting() + http2.begin(method))
            assert any(kind == http2.HEADERS for kind, _ in http2.frames(stranger))
        with Client(server.address) as client:
            assert client.segment(IMAGE).class_map.shape == (4, 4)


def test_an_old_connection_ends_when_its_request_is_answered_and_the_next_gets_a_new_one(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    config = ServerConfig(connections=ConnectionConfig(max_age_s=0.5))
    states: list[grpc.ChannelConnectivity] = []
    with running_server(registry_of(segmenter, tiny_model), config) as server, Client(server.address) as client:
        client._channels[0].subscribe(states.append)
        answers: list[object] = []
        asking = threading.Thread(target=lambda: answers.append(client.segment(IMAGE)))
        asking.start()
        assert segmenter.begun.acquire(timeout=60)
        time.sleep(1.0)  # it is older than it may be, and has a request under way
        segmenter.gate.set()
        asking.join(60)
        assert len(answers) == 1
        # The server has ended the connection, and the client may have made the next one at once.
        ready = grpc.ChannelConnectivity.READY
        wait_until(lambda: ready in states and set(states[states.index(ready) :]) != {ready})
        client.segment(IMAGE)


def test_a_connection_carries_no_more_requests_than_it_may(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    config = ServerConfig(connections=ConnectionConfig(max_streams=2))
    registry = registry_of(segmenter, tiny_model)
    with running_server(registry, config) as server, Client(server.address) as client:
        client.list_models()  # the server's settings have come
        threads = [threading.Thread(target=client.segment, args=(IMAGE,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        admission = registry.models[0].admission
        wait_until(lambda: admission.pending == 2)
        time.sleep(0.3)
        assert admission.pending == 2
        segmenter.gate.set()
        for thread in threads:
            thread.join(60)
        assert sum(map(len, segmenter.batches)) == 3


def test_connections_beyond_what_there_may_be_are_closed_until_others_end(tiny_model: Path) -> None:
    config = ServerConfig(connections=ConnectionConfig(max_connections=2))
    with running_server(tiny_model, config) as server:
        host, port = server.address.split(":")
        with ExitStack() as held, Client(server.address, retries=0) as client:
            for _ in range(2):
                held.enter_context(socket.create_connection((host, int(port))))
            with socket.create_connection((host, int(port)), timeout=20) as beyond:
                assert beyond.recv(1) == b""
            with pytest.raises(ServerUnavailableError):
                client.list_models()
            held.close()
            client.wait_until_ready(60)
            client.list_models()


def test_calls_beyond_what_a_connection_may_carry_wait_and_none_is_refused(tiny_model: Path) -> None:
    config = ServerConfig(connections=ConnectionConfig(max_streams=4))
    with running_server(tiny_model, config) as server, grpc.insecure_channel(server.address) as channel:
        call = SegmentationServiceStub(channel).ListModels  # type: ignore[no-untyped-call] # generated
        futures = [call.future(pb.ListModelsRequest(), timeout=60) for _ in range(400)]
        assert {future.code() for future in futures} == {grpc.StatusCode.OK}


def test_of_thousands_of_calls_at_once_none_is_dropped(tiny_model: Path) -> None:
    apart = [("grpc.use_local_subchannel_pool", 1)]  # a connection each
    with server_process(tiny_model, free_port()) as server, ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(server.address, options=apart)) for _ in range(12)]
        for channel in channels:
            grpc.channel_ready_future(channel).result(60)
        stubs = [health_pb2_grpc.HealthStub(channel) for channel in channels]
        server.pause()  # so that all have come before the first is taken
        watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=60) for stub in stubs for _ in range(250)]
        server.go_on()
        assert {next(watch).status for watch in watches} == {health_pb2.HealthCheckResponse.SERVING}
        for watch in watches:
            watch.cancel()


def test_a_stopping_server_answers_until_its_drain_delay_is_over(tiny_model: Path) -> None:
    config = ServerConfig(drain_delay_s=3.0)
    with running_server(tiny_model, config) as server, Client(server.address, retries=0) as client:
        client.list_models()  # and is connected from now on
        with grpc.insecure_channel(server.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            server.begin_stop()
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            client.segment(IMAGE)
        server.wait_stopped()
        with pytest.raises(ServerUnavailableError):
            client.segment(IMAGE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keepalive_timeout_s": -1.0}, "^keepalive_timeout_s is -1; it must be from 1 to 2073600"),
        ({"keepalive_s": 0.5}, "--keepalive is 0.5; it must be from 1"),
        ({"max_age_s": -1.0}, "--max-connection-age is -1; it must be from 0"),
        ({"max_age_s": float("nan")}, "--max-connection-age is nan"),
        ({"max_age_grace_s": 5.0}, "--max-connection-age-grace is 5 and .*; give --max-connection-age too"),
        ({"max_streams": 0}, "--max-streams is 0; it must be from 1"),
        ({"max_connections": 2**31 - 1}, "--max-connections is .*; it must be from 0 to 2147483646"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ConnectionConfig(**settings)  # type: ignore[arg-type]

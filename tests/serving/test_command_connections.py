"""Options of `fcnseg serve` that show in how its connections live and end."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fcnseg.client import Client
from tests import http2
from tests.server_process import ServerProcess, free_port, server_process

IMAGE = np.full((4, 4, 3), (255, 0, 0), np.uint8)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def frames_of(server: ServerProcess) -> Iterator[tuple[int, bytes]]:
    """Yield what a server sends to a client that greets it and says nothing more."""
    host, _, port = server.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(http2.greeting())
        yield from http2.frames(connection)


def test_a_connection_may_carry_as_many_requests_as_asked(tiny_model: Path) -> None:
    with server_process(tiny_model, free_port(), "--max-streams", "7") as server:
        kind, payload = next(frames_of(server))
    assert kind == http2.SETTINGS
    assert http2.settings(payload)[http2.MAX_CONCURRENT_STREAMS] == 7


def test_there_may_be_as_many_connections_as_asked(tiny_model: Path) -> None:
    with server_process(tiny_model, free_port(), "--max-connections", "1") as server, Client(server.address) as client:
        client.list_models()
        host, _, port = server.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as beyond:
            assert beyond.recv(1) == b""


def test_a_silent_client_is_pinged_after_as_long_as_asked(tiny_model: Path) -> None:
    with server_process(tiny_model, free_port(), "--keepalive", "1") as server:
        assert any(kind == http2.PING for kind, _ in frames_of(server))


def test_a_connection_ends_at_the_age_that_is_asked(tiny_model: Path) -> None:
    with server_process(tiny_model, free_port(), "--max-connection-age", "1") as server:
        assert any(kind == http2.GOAWAY for kind, _ in frames_of(server))


def test_what_is_under_way_at_that_age_may_take_no_longer_than_asked(tiny_model: Path) -> None:
    options = ("--max-connection-age", "1", "--max-connection-age-grace", "1")
    with (
        server_process(tiny_model, free_port(), *options) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        last_resort = threading.Timer(60, watch.cancel)
        last_resort.start()
        with pytest.raises(grpc.RpcError):  # noqa: PT012 - the first answer may come too late already
            for health in watch:
                assert health.status == SERVING
        last_resort.cancel()
        assert watch.code() is grpc.StatusCode.UNAVAILABLE


def test_requests_are_answered_in_the_drain_delay(tiny_model: Path) -> None:
    with server_process(tiny_model, free_port(), "--drain-delay", "60") as server:
        with grpc.insecure_channel(server.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
            assert next(watch).status == SERVING
            server.begin_stop()
            assert next(watch).status == NOT_SERVING
        with Client(server.address, retries=0) as client:
            client.segment(IMAGE)
        assert server.exit_code is None


def test_services_are_not_described_where_that_is_switched_off(tiny_model: Path) -> None:
    with (
        server_process(tiny_model, free_port(), "--no-reflection") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        answers = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10)
        assert answers.code() is grpc.StatusCode.UNIMPLEMENTED

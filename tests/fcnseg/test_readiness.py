"""Both clients wait until a server is ready, not until it answers."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fcnseg import AsyncClient, Client
from fcnseg.errors import RequestError, RequestTimeoutError, UsageError
from serving.security import Security
from serving.server import ServerConfig
from serving.tokens import Tokens, make_token
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.other_server import server_that_answers
from tests.running_server import CPU_CONFIG, RunningServer, running_server
from tests.server_process import free_port
from tests.waiting import wait_until

Wait = Callable[..., None]
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def wait_with_client(address: str, timeout_s: float, token: str | None = None) -> None:
    with Client(address, token=token) as client:
        client.wait_until_ready(timeout_s)


def wait_with_async_client(address: str, timeout_s: float, token: str | None = None) -> None:
    async def wait() -> None:
        async with AsyncClient(address, token=token) as client:
            await client.wait_until_ready(timeout_s)

    asyncio.run(wait())


both_clients = pytest.mark.parametrize("wait", [wait_with_client, wait_with_async_client])


class UnsteadyServer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # without types
    """A server's health that is NOT_SERVING, then told by two failures, then NOT_SERVING for good.

    Attributes:
        calls: How often it was asked for.
    """

    def __init__(self) -> None:
        self.calls = 0

    def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        del request
        self.calls += 1
        if self.calls in (2, 3):
            context.abort(grpc.StatusCode.UNAVAILABLE if self.calls == 2 else grpc.StatusCode.CANCELLED, "going away")
        return health_pb2.HealthCheckResponse(status=NOT_SERVING)


@both_clients
def test_a_server_that_warms_its_models_is_waited_for(tiny_model: Path, wait: Wait) -> None:
    segmenter, port = GatedSegmenter(tiny_model), free_port()
    registry = registry_of(segmenter, tiny_model, replace(CPU_CONFIG, warm_sizes=((8, 12),)))
    with ThreadPoolExecutor() as pool:
        starting = pool.submit(RunningServer, registry, ServerConfig(port=port))
        assert segmenter.begun.acquire(timeout=60)
        with pytest.raises(RequestTimeoutError, match=r"answers, and was not ready within 3 s: it warms its models"):
            wait(f"127.0.0.1:{port}", 3)
        waiting = pool.submit(wait, f"127.0.0.1:{port}", 60)
        segmenter.gate.set()
        waiting.result(60)
        starting.result(60).stop()


@both_clients
def test_waiting_goes_on_where_a_server_goes_and_another_comes(tiny_model: Path, wait: Wait) -> None:
    port, health = free_port(), UnsteadyServer()
    with ThreadPoolExecutor() as pool:
        first = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(health, first)
        first.add_insecure_port(f"127.0.0.1:{port}")
        first.start()
        waiting = pool.submit(wait, f"127.0.0.1:{port}", 60)
        wait_until(lambda: health.calls > 3 or waiting.done())
        first.stop(None).wait()
        with running_server(tiny_model, ServerConfig(port=port)):
            waiting.result(60)


@both_clients
def test_waiting_needs_no_token(tiny_model: Path, tmp_path: Path, wait: Wait) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text(make_token("someone")[1].line)
    with running_server(tiny_model, ServerConfig(security=Security(tokens=Tokens(path)))) as server:
        wait(server.address, 60)
        wait(server.address, 60, "unknown")


@both_clients
def test_a_server_without_health_is_not_waited_for(wait: Wait) -> None:
    with server_that_answers() as address, pytest.raises(RequestError, match="is not one of 'fcnseg serve'") as caught:
        wait(address, 60)
    assert caught.value.code == "UNIMPLEMENTED"


@both_clients
@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_waited_for_is_refused(wait: Wait, timeout_s: float) -> None:
    with pytest.raises(UsageError, match=rf"timeout is {timeout_s:g} s; it must be above 0 and at most 86400"):
        wait("127.0.0.1:1", timeout_s)


def test_waiting_ends_when_the_client_is_closed() -> None:
    health = UnsteadyServer()
    with ThreadPoolExecutor() as pool:
        server = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        client = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        waiting = pool.submit(client.wait_until_ready, 60)
        wait_until(lambda: health.calls > 0)
        client.close()
        with pytest.raises(UsageError, match="has been closed"):
            waiting.result(60)
        server.stop(None).wait()

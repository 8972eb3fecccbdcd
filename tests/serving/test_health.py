"""Health is told at once, whatever those who watch it do."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME

from serving.health import HealthServicer
from serving.server import ServerConfig
from tests import http2
from tests.running_server import running_server
from tests.scraping import scrape

UNKNOWN, SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)


def test_a_watcher_that_does_not_read_holds_up_nobody() -> None:
    asyncio.run(watch_and_check())


def test_who_asks_for_no_service_and_goes_away_is_no_fault_of_the_server(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody may, and would fill the log with tracebacks and set off alerts."""
    asked = health_pb2.HealthCheckRequest(service="nobody")
    with running_server(tiny_model, ServerConfig(http_port=0)) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for i in range(300):
                with suppress(grpc.RpcError):
                    stub.Check(asked, timeout=i / 50_000)
            with pytest.raises(grpc.RpcError, match="there is no such service"):
                stub.Check(asked, timeout=20)
        metrics, method = scrape(server), f"{SERVICE_NAME}/Check"
        assert metrics.value("fcnseg_requests_total", method=method, code="NOT_FOUND") > 0
        assert metrics.value("fcnseg_requests_total", method=method, code="UNKNOWN") == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def watch_and_check() -> None:
    health, server = HealthServicer(["a.Service"]), grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    asked = health_pb2.HealthCheckRequest(service="a.Service")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with socket.create_connection(("127.0.0.1", port)) as unread:
            unread.sendall(http2.greeting(window=0) + http2.begin(f"{SERVICE_NAME}/Watch") + http2.send(asked))
            watch, stranger = stub.Watch(asked), stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
            assert (await watch.read()).status == NOT_SERVING
            assert (await stranger.read()).status == UNKNOWN
            for serving, status in ((True, SERVING), (False, NOT_SERVING)):
                health.serving = serving
                assert (await watch.read()).status == status
                assert (await stub.Check(asked, timeout=5)).status == status
                assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == status
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch.cancel()
        stranger.cancel()
    await server.stop(0)

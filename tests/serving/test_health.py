"""Health is told at once, whatever those who watch it do."""

import asyncio
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME

from serving.health import HealthServicer
from tests import http2

UNKNOWN, SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)


def test_a_watcher_that_does_not_read_holds_up_nobody() -> None:
    asyncio.run(watch_and_check())


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

"""What interceptors share: a method's handler is wrapped once, and methods that are made up leave nothing behind."""

from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.handlers import HandlerInterceptor
from serving.health import HealthServicer

if TYPE_CHECKING:
    from serving.handlers import Handler

CHECK = "/grpc.health.v1.Health/Check"


class Wrapping(HandlerInterceptor):
    """Leaves handlers as they are.

    Attributes:
        methods: Those whose handlers it was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.methods: list[str] = []

    def wrap(self, handler: "Handler", method: str) -> "Handler":
        self.methods.append(method)
        return handler


async def test_a_method_is_wrapped_once_and_none_that_is_made_up_is_kept() -> None:
    outer, inner = Wrapping(), Wrapping()
    server = grpc.aio.server(interceptors=[outer, inner])
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer([]), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            for i in range(3):
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
                with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                    await channel.unary_unary(f"/made.Up/{i}")(b"")
    finally:
        await server.stop(None)
    assert outer.methods == inner.methods == [CHECK]
    assert list(outer._wrapped) == list(inner._wrapped) == [CHECK]

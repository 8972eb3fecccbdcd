"""gRPC's health service, whose statuses change at once, whatever those who watch them do.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md. grpc_health's own servicer writes to a watcher with the
lock held that a change of status needs: one watcher that does not read would keep a server from ever being ready.
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from serving.handlers import Context

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # without types
    """Tells whether the server and its services take requests: all do, or none.

    Args:
        services: Their full names.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}  # "" is the server
        self._serving = False
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether requests are taken."""
        return self._serving

    @serving.setter
    def serving(self, serving: bool) -> None:
        self._serving = serving
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: "Context"
    ) -> health_pb2.HealthCheckResponse:
        """Tell a service's status; one that there is not is NOT_FOUND."""
        if request.service not in self._services:
            # Not `abort`, which fails like a servicer where the caller has gone away.
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details("there is no such service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: "Context"
    ) -> None:
        """Tell a service's status, and each change of it."""
        told = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status == told:
                await changed.wait()
                continue
            await context.write(health_pb2.HealthCheckResponse(status=status))
            told = status

    def _status(self, service: str) -> "health_pb2.HealthCheckResponse.ServingStatus.ValueType":
        if service not in self._services:
            return _UNKNOWN
        return _SERVING if self._serving else _NOT_SERVING

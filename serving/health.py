"""gRPC's health service, whose statuses change at once, even if a watching client does not read.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md. grpc_health's own servicer writes to watchers while it
holds the lock that a status change needs, so one watcher that does not read would keep a server from getting ready.
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
    """Reports whether the server and its services accept requests: all do, or none.

    Args:
        services: The full names of the services.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}  # "" is the server
        self._serving = False
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether requests are accepted."""
        return self._serving

    @serving.setter
    def serving(self, serving: bool) -> None:
        self._serving = serving
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: "Context"
    ) -> health_pb2.HealthCheckResponse:
        """Return a service's status; NOT_FOUND for an unknown service."""
        if request.service not in self._services:
            # Not `abort`, which raises an error like that of a faulty servicer if the caller has gone away.
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details("there is no such service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: "Context"
    ) -> None:
        """Send a service's status, and each change of it."""
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

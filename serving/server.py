"""The server's composition root: models, services, limits and health become one grpc.aio server."""

import asyncio
import errno
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from fcnseg.allocator import release_freed_memory
from fcnseg.errors import UsageError
from fcnseg.hosts import join_port
from fcnseg.images import ImageLimits
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.model_admin_pb2_grpc import add_ModelAdminServiceServicer_to_server
from fcnseg.v1.segmentation_pb2_grpc import add_SegmentationServiceServicer_to_server
from serving.admin_servicer import SERVICE as MODEL_ADMIN_SERVICE
from serving.admin_servicer import ModelAdminServicer
from serving.administration import Administration
from serving.connections import ConnectionConfig
from serving.drain import CallCounter
from serving.health import HealthServicer
from serving.interceptor import ErrorInterceptor
from serving.message_size import MessageSizeInterceptor
from serving.metrics import collect_into
from serving.observer import CallObserver
from serving.oip.inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from serving.oip.servicer import SERVICE as INFERENCE_SERVICE
from serving.oip.servicer import InferenceServicer
from serving.pipeline import Pipeline
from serving.registry import ModelRegistry
from serving.security import Security
from serving.servicer import SegmentationServicer
from serving.side_server import SideServer
from serving.signals import end_at_once, end_when_overdue

if TYPE_CHECKING:
    from serving.spans import CallTracer  # in an extra

_log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"].full_name
_SERVICES = (SERVICE, MODEL_ADMIN_SERVICE, INFERENCE_SERVICE)
_RAW_BYTES_PER_PIXEL = 3
_LOOPBACK = "127.0.0.1"
# Room besides the image: an image just above its limit still reaches the check that names the field.
_MESSAGE_SLACK_BYTES = 1 << 20
_LARGEST_MESSAGE_BYTES = 2**31 - 1
# How long it may take until calls that were just accepted are counted.
_SETTLE_S = 0.05
_TIDY_S = 10.0
_BEAT_S = 1.0
# After how long without a beat the event loop counts as stuck: far longer than any library call holds the GIL.
_LONGEST_SILENCE_S = 30.0
# How long exporting the last spans may take: less if the grace period ends before, but never nothing.
_LONGEST_FLUSH_S = 5.0
_SHORTEST_FLUSH_S = 0.5
# How long the end may take after the grace.
_LONGEST_END_S = 5.0
_LONGEST_S = 86400.0


@dataclass(frozen=True)
class ServerConfig:
    """How to serve.

    Attributes:
        host: The address to listen on.
        port: The port; 0 picks a free one.
        limits: Images beyond these are refused.
        grace_s: How long requests in progress may still take once the server is stopped, in seconds.
        drain_delay_s: How long the server still accepts requests after it has reported NOT_SERVING, in seconds, so that
            load balancers notice.
        connections: How connections are kept.
        watch_s: How often to look for models that have changed, in seconds; 0 for never.
        http_port: The port for probes and metrics, 0 for a free one; None for no such port.
        security: Encryption, and who may call what.
        tracer: Traces calls, and is closed with the server; None for no traces.
        shares_port: Whether other processes listen at the port too.

    Raises:
        UsageError: A time is not valid; the message names the flag of `fcnseg serve`.
    """

    host: str = "127.0.0.1"
    port: int = 0
    limits: ImageLimits = field(default_factory=ImageLimits)
    grace_s: float = 30.0
    drain_delay_s: float = 0.0
    connections: ConnectionConfig = field(default_factory=ConnectionConfig)
    watch_s: float = 0.0
    http_port: int | None = None
    security: Security = field(default_factory=Security)
    tracer: "CallTracer | None" = None
    shares_port: bool = False

    def __post_init__(self) -> None:
        times = {"--grace": self.grace_s, "--drain-delay": self.drain_delay_s, "--watch": self.watch_s}
        for flag, seconds in times.items():
            if not 0 <= seconds <= _LONGEST_S:
                raise UsageError(f"{flag} is {seconds:g} s; it must be from 0 to {_LONGEST_S:g}")

    def require_free_ports(self) -> None:
        """Check that the ports can be listened on, before the server is made.

        Raises:
            UsageError: One cannot; the message says why.
        """
        if not self.shares_port:
            check_port(self.host, self.port)
        if self.http_port is not None:
            check_port(self.http_host, self.http_port, "--http-port")

    @property
    def http_host(self) -> str:
        """The address for probes and metrics; if the port is shared, they are only for this machine."""
        return _LOOPBACK if self.shares_port else self.host


class Server:
    """A gRPC server for the models of a registry; made, started and stopped in one running event loop.

    Args:
        registry: The models; closed with the server.
        config: How to serve.
    """

    def __init__(self, registry: ModelRegistry, config: ServerConfig) -> None:
        self._registry = registry
        self._config = config
        self._pipeline = Pipeline(config.limits)
        self._calls = CallCounter()
        self._chores: list[asyncio.Task[None]] = []
        self._health = HealthServicer(_SERVICES)
        self._side: SideServer | None = None
        self._beating: asyncio.Task[None] | None = None
        self._last_beat = time.monotonic()
        services = [*_SERVICES, HEALTH_SERVICE, *([reflection.SERVICE_NAME] if config.security.reflection else [])]
        observer = CallObserver(_methods_of(services), config.tracer)
        self._collectors = CollectorRegistry()
        collect_into(self._collectors, registry, observer, self._is_ready)
        self._server = grpc.aio.server(
            interceptors=[
                observer,
                config.security.guard(config.host),
                self._calls,
                ErrorInterceptor(),
                MessageSizeInterceptor(),
            ],
            options=_channel_options(config),
        )
        servicer = SegmentationServicer(registry, self._pipeline, self._calls, largest_request(config.limits))
        add_SegmentationServiceServicer_to_server(servicer, self._server)
        administration = Administration(registry)
        admin = ModelAdminServicer(administration, servicer.describe_models)
        add_ModelAdminServiceServicer_to_server(admin, self._server)
        inference = InferenceServicer(registry, administration, self._pipeline, self._calls, self._health)
        add_GRPCInferenceServiceServicer_to_server(inference, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.security.reflection:
            reflection.enable_server_reflection(services, self._server)

    @property
    def http_address(self) -> str | None:
        """The address of probes and metrics, as HOST:PORT; None if there is none."""
        return self._side.address if self._side else None

    async def start(self) -> str:
        """Listen, warm the models, report SERVING, and return the address as HOST:PORT.

        Until the models are warm, health is NOT_SERVING.

        Raises:
            UsageError: The port cannot be listened on; the message says why.
        """
        host, port = self._config.host, self._config.port
        if not self._config.shares_port:
            check_port(host, port)
        address = join_port(host, port)
        try:
            port = self._config.security.listen(self._server, address)
        except RuntimeError as error:
            raise UsageError(f"cannot listen on {address}; choose another with --host and --port") from error
        await self._server.start()
        if (http_port := self._config.http_port) is not None:
            check_port(self._config.http_host, http_port, "--http-port")
            # In a thread: the library asks the resolver for the host's name.
            self._side = await asyncio.to_thread(
                SideServer, self._config.http_host, http_port, self._collectors, self._is_alive, self._is_ready
            )
            self._beating = asyncio.create_task(self._beat())
        await asyncio.to_thread(self._registry.warm)
        self._health.serving = True
        self._chores.append(asyncio.create_task(self._tidy()))
        if self._config.watch_s:
            self._chores.append(asyncio.create_task(self._watch()))
        return join_port(host, port)

    async def stop(self) -> None:
        """Report NOT_SERVING, wait for the drain delay, refuse new requests, and finish the others in the grace period.

        Then the models are closed. An inference that outlasts the grace period is waited for, since it cannot be
        interrupted, but its call is ended.
        """
        for chore in self._chores:
            chore.cancel()
        if self._health.serving:  # else no balancer sends requests here
            self._health.serving = False
            await asyncio.sleep(self._config.drain_delay_s)
        self._calls.stopping.set()
        self._registry.stop_opening()
        end_of_grace = time.monotonic() + self._config.grace_s
        ended = asyncio.create_task(self._server.stop(self._config.grace_s))
        await asyncio.wait([ended], timeout=_SETTLE_S)
        idle = asyncio.create_task(self._calls.wait_until_idle())
        await asyncio.wait([ended, idle], return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        self._calls.stopped.set()
        await ended
        if self._config.tracer is not None:
            left = min(end_of_grace - time.monotonic(), _LONGEST_FLUSH_S)
            await asyncio.to_thread(self._config.tracer.close, max(left, _SHORTEST_FLUSH_S))
        await asyncio.to_thread(self._registry.close)
        self._pipeline.close()
        if self._side is not None:
            await asyncio.to_thread(self._side.close)
        if self._beating is not None:
            self._beating.cancel()

    def _is_ready(self) -> bool:
        """Tell whether health is SERVING; from any thread."""
        return self._health.serving

    def _is_alive(self) -> bool:
        """Tell whether the event loop responds; from any thread."""
        return time.monotonic() - self._last_beat < _LONGEST_SILENCE_S

    async def _beat(self) -> None:
        while True:
            self._last_beat = time.monotonic()
            await asyncio.sleep(_BEAT_S)

    async def _tidy(self) -> None:
        """Give freed memory back to the system when the server is idle; between requests it is kept for the next."""
        ended = 0
        while True:
            await asyncio.sleep(_TIDY_S)
            if self._calls.idle and self._calls.ended != ended:
                ended = self._calls.ended
                await asyncio.to_thread(release_freed_memory)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._config.watch_s)
            try:
                await asyncio.to_thread(self._registry.refresh)
            except Exception:  # noqa: BLE001 - it must look again, whatever a file system does
                _log.exception("the models stay as they were")


async def serve_until_stopped(
    registry: ModelRegistry,
    config: ServerConfig,
    announce: Callable[[str, str | None], None],
    lifeline: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully; a second signal ends the process at once.

    The process also ends if something still runs a few seconds after the grace period. With a lifeline, a second signal
    changes nothing: service managers signal both a process and its parent, which passes the signal on.

    Args:
        registry: The models; closed at the end.
        config: How to serve.
        announce: Called with the address, HOST:PORT, and that of probes and metrics, when requests are accepted.
        lifeline: A file descriptor; when it is closed at the other end, the server stops too.

    Raises:
        UsageError: The port cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, asked_to_stop.set)
    if lifeline is not None:
        loop.add_reader(lifeline, asked_to_stop.set)
    server = Server(registry, config)
    starting, stopping = asyncio.create_task(server.start()), asyncio.create_task(asked_to_stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            # Objects made so far live as long as the process: frozen, they cost the garbage collector no 30 ms per run.
            gc.collect()
            gc.freeze()
            announce(starting.result(), server.http_address)
            await stopping
        _log.info("stopping: requests under way have %g s", config.grace_s)
        end_when_overdue(config.drain_delay_s + config.grace_s + _LONGEST_END_S)
    finally:
        if lifeline is not None:
            loop.remove_reader(lifeline)
        stopping.cancel()
        starting.cancel()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN if lifeline is not None else end_at_once)
        await server.stop()


def largest_request(limits: ImageLimits) -> int:
    """Return the bytes of the largest message that is received."""
    largest_image = max(limits.max_bytes, limits.max_pixels * _RAW_BYTES_PER_PIXEL)
    return min(largest_image + _MESSAGE_SLACK_BYTES, _LARGEST_MESSAGE_BYTES)


def _methods_of(services: Iterable[str]) -> list[str]:
    """Return the methods of services as SERVICE/METHOD."""
    pool = descriptor_pool.Default()
    return [f"{name}/{method.name}" for name in services for method in pool.FindServiceByName(name).methods]


def _channel_options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        *config.connections.channel_options,
        ("grpc.max_receive_message_length", largest_request(config.limits)),
        # An answer is as large as its image, which has been admitted.
        ("grpc.max_send_message_length", -1),
        # With this on, two independent servers could share a port unnoticed, and clients would reach either.
        ("grpc.so_reuseport", int(config.shares_port)),
    ]


def check_port(host: str, port: int, option: str = "--port") -> None:
    """Check that a port can be listened on, and say why not: gRPC's own error does not give the reason.

    Raises:
        UsageError: It is in use at one of the host's addresses, or none of them can be listened on.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the second for a part that is longer than a name's may be
        raise UsageError(
            f"cannot listen on host {host!r}: it is not an address; use --host 127.0.0.1 or 0.0.0.0"
        ) from error
    attempts = [_try_to_listen(family, address) for family, _, _, _, address in addresses]
    failures = [failure for failure in attempts if failure is not None]
    if any(failure.errno == errno.EADDRINUSE for failure in failures):
        raise UsageError(
            f"port {port} of {host} is in use; choose another with {option}, or a free one with {option} 0"
        )
    if len(failures) == len(addresses):
        raise UsageError(
            f"cannot listen on {host}:{port}: {failures[0].strerror}; choose another with --host and {option}"
        ) from failures[0]


def _try_to_listen(family: socket.AddressFamily, address: tuple[Any, ...]) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: ended connections do not count
            probe.bind(address)
            probe.listen()
    except OSError as error:
        return error
    return None

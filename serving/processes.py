"""Several server processes on one port, since the GIL lets one process use little more than a core.

The parent process computes nothing. It holds the port, starts the others with its own command line, passes signals on
to them, and answers probes for them. Each child is a complete server with its own models; the kernel gives each new
connection to one of them (SO_REUSEPORT, see socket(7)).
"""

import asyncio
import errno
import json
import logging
import os
import select
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Self

import click
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from fcnseg.errors import UsageError
from fcnseg.hosts import join_port
from serving.metrics import write_ready
from serving.probing import read
from serving.server import check_port
from serving.side_server import SideServer

_log = logging.getLogger(__name__)

_VARIABLE = "FCNSEG_SERVE_PART"
_OPENED = b"the models are open"
_LISTENING, _PROBED = b"listening on ", b"probes and metrics at http://"
_BY_SIGNAL = 128
LIFELINE = 0
"""The standard input of each process, a pipe that is closed when the parent process ends."""


@dataclass(frozen=True)
class Part:
    """The role of one of several server processes.

    Attributes:
        number: The number of this process, from 1.
        count: How many processes there are.
        port: The port that all of them share.
    """

    number: int
    count: int
    port: int

    @classmethod
    def of_this_process(cls) -> Self | None:
        """Return the part that this process was started as; None if it serves alone. Its own children get none."""
        told = os.environ.pop(_VARIABLE, None)
        return None if told is None else cls(**json.loads(told))

    @property
    def environment(self) -> dict[str, str]:
        """The environment to start it in."""
        return {**os.environ, _VARIABLE: json.dumps(asdict(self))}


def wait_for_others(part: Part | None) -> int | None:
    """Report that the models of this process are open, and wait until those of the others are.

    Args:
        part: Which of the processes this is; None if it serves alone, and waits for none.

    Returns:
        Its lifeline; None if it serves alone.
    """
    if part is None:
        return None
    click.echo(_OPENED)
    select.select([LIFELINE], [], [])
    os.read(LIFELINE, 1)  # empty at its end, which the event loop sees again
    return LIFELINE


async def serve_in_processes(
    count: int, host: str, port: int, http_port: int | None, announce: Callable[[Sequence[bytes]], None]
) -> int:
    """Serve with processes that share a port, until SIGTERM or SIGINT, or until one of them ends.

    The first must open its models before the others start, so that an error in a model is reported once. They listen
    only when all have opened their models: otherwise all clients that wait would stay connected to the first.

    Args:
        count: How many.
        host: The address to listen on.
        port: The port; 0 picks a free one.
        http_port: The port for probes and metrics of them all, 0 for a free one; None for no such port.
        announce: Called with the lines to be printed when all of them listen.

    Returns:
        The exit code.

    Raises:
        UsageError: This system cannot share a port, or it cannot be listened on.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise UsageError("--processes needs a system whose processes can share a port, such as Linux; leave it out")
    with ExitStack() as held:
        port = held.enter_context(held_port(host, port))
        servers = _Servers(Part(number, count, port) for number in range(1, count + 1))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, servers.take_signal)
            held.callback(loop.remove_signal_handler, number)
        lines: list[bytes] = []
        if http_port is not None:
            check_port(host, http_port, "--http-port")  # again: it may be the port that is held
            probes = (servers.metrics(), servers.are_alive, servers.are_ready)
            side = await asyncio.to_thread(SideServer, host, http_port, *probes)
            held.callback(side.close)
            lines.append(f"probes and metrics at http://{side.address}".encode())
        try:
            if await servers.start() and not servers.stopping:
                announce([*servers.lines, *lines, f"listening on {join_port(host, port)}".encode()])
        except Exception:
            servers.stop()
            await servers.ended()
            raise
        return await servers.ended()


@contextmanager
def held_port(host: str, port: int) -> Iterator[int]:
    """Hold a port of a host, 0 for a free one, for the processes to share while the block runs; yield its number.

    Like a server, it skips those of the host's addresses that this machine does not have.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failures: list[OSError] = []
    with ExitStack() as held:
        for family, _, _, _, address in addresses:
            try:
                port = held.enter_context(_hold(family, (address[0], port, *address[2:]))).getsockname()[1]
            except OSError as error:
                failures.append(error)
        for failure in failures:
            if failure.errno == errno.EADDRINUSE or len(failures) == len(addresses):
                raise UsageError(
                    f"cannot listen on {host}:{port}: {failure.strerror}; choose another port"
                ) from failure
        yield port


def _hold(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError:
        holder.close()
        raise
    return holder


class _Servers:
    """The processes, from their start to their end.

    Attributes:
        stopping: Whether they are to stop.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self._servers = [_Server(part) for part in parts]
        self._signalled = False
        self.stopping = False

    @property
    def lines(self) -> Sequence[bytes]:
        """What they tell of their models, each the same, in the encoding of this process and theirs."""
        return self._servers[0].lines

    async def start(self) -> bool:
        """Start them, and tell whether all of them listen, as soon as one does not."""
        first, *others = self._servers
        if not await first.open() or self.stopping:
            return False
        return await _all_do(server.open() for server in others) and await _all_do(
            server.listen() for server in self._servers
        )

    async def ended(self) -> int:
        """Return the exit code when all have ended; where one does so by itself, the others are stopped."""
        code = 0
        waiting = {asyncio.create_task(server.ended()): server for server in self._servers if server.was_started}
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                server, found = waiting.pop(task), task.result()
                if self.stopping and found == _BY_SIGNAL + signal.SIGTERM:  # ours, before it listened
                    continue
                code = max(code, found)
                if not self.stopping:
                    code = max(code, 1)
                    if server.listens or found > _BY_SIGNAL:  # else it has told why
                        _log.error("%s ended with exit code %d; the others are stopped", server.name, found)
                    self.stop()
        return code

    def take_signal(self) -> None:
        """Let them stop, or, the second time, end at once."""
        if self._signalled:
            for server in self._servers:
                server.kill()
        self._signalled = True
        self.stop()

    def stop(self) -> None:
        """Pass on that they are to stop."""
        self.stopping = True
        for server in self._servers:
            server.stop()

    def are_alive(self) -> bool:
        """Tell whether the event loops of those that listen turn; from any thread.

        One that has ended says nothing of the others, which finish.
        """
        return all(server.says("/healthz") for server in self._servers if server.listens and not server.has_ended)

    def are_ready(self) -> bool:
        """Tell whether health is SERVING in all of them; from any thread."""
        return all(server.listens and server.says("/readyz") for server in self._servers)

    def metrics(self) -> CollectorRegistry:
        """Return what collects the metrics of them all."""
        collectors = CollectorRegistry()
        collectors.register(_Metrics(self._servers))
        return collectors


async def _all_do(waited: Iterable[Coroutine[Any, Any, bool]]) -> bool:
    """Tell whether all that is waited for is so, as soon as something is not."""
    for found in asyncio.as_completed([asyncio.create_task(each) for each in waited]):
        if not await found:
            return False
    return True


class _Server:
    """One of the processes.

    Attributes:
        lines: The lines in which the process told of its models.
        listens: Whether the process listens for requests yet.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._process: Process | None = None
        self._probes = ""
        self._stopping = False
        self.lines: list[bytes] = []
        self.listens = False

    @property
    def name(self) -> str:
        """What it is called in the log."""
        return f"process {self._part.number} of {self._part.count}"

    @property
    def was_started(self) -> bool:
        """Whether there is or was such a process."""
        return self._process is not None

    async def open(self) -> bool:
        """Start it by the command line of this process, and tell whether its models are open or it has ended."""
        # In a session of its own: Ctrl-C of a terminal is passed on to it once.
        self._process = await asyncio.create_subprocess_exec(
            *sys.orig_argv, env=self._part.environment, stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        if self._stopping:
            self.stop()
        return await self._tells(_OPENED)

    async def listen(self) -> bool:
        """Let it listen, and tell whether it does or has ended."""
        assert self._process is not None  # noqa: S101 - it was started
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        self._process.stdin.write(b"\n")
        self.listens = await self._tells(_LISTENING)
        return self.listens

    async def _tells(self, awaited: bytes) -> bool:
        """Keep what it prints until a line that begins so, and tell whether there was one."""
        assert self._process is not None  # noqa: S101 - it was started
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        async for line in self._process.stdout:
            if line.startswith(awaited):
                return True
            if line.startswith(_PROBED):
                self._probes = line.removeprefix(_PROBED).decode().rstrip()
            else:
                self.lines.append(line.rstrip())
        return False

    def stop(self) -> None:
        """Ask it to stop, now or as soon as it is there."""
        self._stopping = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    @property
    def has_ended(self) -> bool:
        """Whether it was there and is no more."""
        return self._process is not None and self._process.returncode is not None

    async def ended(self) -> int:
        """Return its exit code when it has ended, as a shell would: 128 and a signal's number where that ended it."""
        assert self._process is not None  # noqa: S101 - it was started
        code = await self._process.wait()
        return code if code >= 0 else _BY_SIGNAL - code

    def says(self, path: str) -> bool:
        """Tell whether it answers a probe with yes."""
        try:
            read(self._probes, path)
        except OSError:
            return False
        return True

    def metrics(self) -> Sequence[Metric]:
        """Return its metrics, with its number as a label; that it is not ready where it does not answer."""
        families: list[Metric] = [write_ready(is_ready=False)]
        if self.listens:
            with suppress(OSError):
                families = list(text_string_to_metric_families(read(self._probes, "/metrics")))
        label = {"process": str(self._part.number)}
        for family in families:
            family.samples = [sample._replace(labels={**sample.labels, **label}) for sample in family.samples]
        return families


class _Metrics(Collector):
    def __init__(self, servers: Sequence[_Server]) -> None:
        self._servers = servers

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        with ThreadPoolExecutor(len(self._servers)) as asking:  # each that does not answer takes seconds
            for family in chain.from_iterable(asking.map(_Server.metrics, self._servers)):
                families.setdefault(family.name, family)
                if families[family.name] is not family:
                    families[family.name].samples += family.samples
        return families.values()

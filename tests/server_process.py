"""`fcnseg serve` in a process of its own, which can be stopped and killed."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

_ports = iter(random.sample(range(20_000, 30_000), 10_000))


class ServerProcess:
    """A server that answers at `address` until it is stopped or killed.

    Args:
        model: The model file.
        port: The port.
        options: What else the command is given.
        environment: Variables beside the test's own.
        log: Takes the server's log; None leaves it among the test's own output.
        open_files: How many files it may open, connections among them; None for as many as the test.

    Attributes:
        address: Where it answers, as HOST:PORT.
        http_address: Where it answers probes; None where `options` do not ask for that.
    """

    http_address: str | None = None

    def __init__(
        self,
        model: Path,
        port: int,
        *options: str,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        open_files: int | None = None,
    ) -> None:
        self.address = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "fcnseg", "serve", str(model), "--port", str(port), "--device", "cpu"]
        if open_files:
            command = ["sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh", *command]
        with log.open("a") if log else nullcontext() as stderr:
            self._process = subprocess.Popen(
                [*command, "--threads", "1", *options],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.fullmatch(r"probes and metrics at http://(\S+)\n", line):
                self.http_address = found[1]
            if re.fullmatch(rf"listening on {re.escape(self.address)}\n", line):
                return
        pytest.fail(f"the server ended with {self._process.wait()} before it listened")

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """What the process ended with; None while it runs."""
        return self._process.poll()

    def pause(self) -> None:
        """Let the process stand still; what comes waits in its sockets."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let the process run again."""
        self._process.send_signal(signal.SIGCONT)

    def begin_stop(self) -> None:
        """Ask for a graceful stop, by SIGTERM, and return at once."""
        self._process.terminate()

    def wait_stopped(self, timeout_s: float = 30.0) -> int:
        """Return the exit code when the process has ended."""
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """End the process at once, as kill -9 does."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def server_process(
    model: Path,
    port: int,
    *options: str,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    open_files: int | None = None,
) -> Iterator[ServerProcess]:
    """Serve a model file on the CPU; arguments are those of `ServerProcess`."""
    server = ServerProcess(model, port, *options, environment=environment, log=log, open_files=open_files)
    try:
        yield server
    finally:
        server.kill()


def free_port() -> int:
    """Return a port outside the range that systems hand out, another one at each call.

    No other program gets it in the meantime, and a client that tries it cannot connect to itself.
    """
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("no free port")

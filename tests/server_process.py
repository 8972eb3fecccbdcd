"""`fcnseg serve` in a process of its own, which can be killed."""

import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest


class ServerProcess:
    """A server that answers at `address` until it is killed.

    Args:
        model: The model file or repository.
        port: The port.
        options: More options of `fcnseg serve`.
        log: Takes what the server writes to stderr; None leaves it where the tests' own goes.

    Attributes:
        address: Where it answers, as HOST:PORT.
        http_address: Where it answers probes; None where `options` do not ask for that.
    """

    http_address: str | None = None

    def __init__(self, model: Path, port: int, options: Sequence[str] = (), log: Path | None = None) -> None:
        self.address = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "fcnseg", "serve", str(model), "--port", str(port), "--device", "cpu"]
        with log.open("w") if log else nullcontext() as stderr:
            self._process = subprocess.Popen(
                [*command, "--threads", "1", *options], stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.fullmatch(r"probes and metrics at http://(\S+)\n", line):
                self.http_address = found[1]
            if line == f"listening on {self.address}\n":
                return
        pytest.fail(f"the server ended with {self._process.wait()} before it listened")

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """What it ended with; None while it runs."""
        return self._process.poll()

    def stop(self, timeout_s: float) -> int:
        """Ask the process to end, as an operator does, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended in time.
        """
        self._process.terminate()
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """End the process at once, as kill -9 does."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def server_process(
    model: Path, port: int, options: Sequence[str] = (), log: Path | None = None
) -> Iterator[ServerProcess]:
    """Serve a model file or repository on the CPU."""
    server = ServerProcess(model, port, options, log)
    try:
        yield server
    finally:
        server.kill()


def free_port() -> int:
    """Return a port outside the range that systems hand out.

    No other program gets it in the meantime, and a client that tries it cannot connect to itself.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("no free port")

"""`fcnseg serve` in a process of its own, which can be killed."""

import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class ServerProcess:
    """A server that answers at `address` until it is killed.

    Args:
        model: The model file.
        port: The port.
    """

    def __init__(self, model: Path, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "fcnseg", "serve", str(model), "--port", str(port), "--device", "cpu"]
        self._process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if re.fullmatch(rf"listening on {re.escape(self.address)}\n", line):
                return
        pytest.fail(f"the server ended with {self._process.wait()} before it listened")

    def kill(self) -> None:
        """End the process at once, as kill -9 does."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def server_process(model: Path, port: int) -> Iterator[ServerProcess]:
    """Serve a model file on the CPU."""
    server = ServerProcess(model, port)
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

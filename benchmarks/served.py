"""Servers for a benchmark, each in a process of its own, on a free port."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from loop import HEIGHT, WIDTH
from reporting import ROOT

ON_THIS_CHECKOUT = {**os.environ, "PYTHONPATH": str(ROOT)}
"""Variables by which any Python, with whatever it has installed, runs the fcnseg that stands here."""
BARE = Path(__file__).with_name("bare_server.py")


def serve(
    model: Path, *options: str, python: str | Path = sys.executable
) -> AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    """Serve a model file by `fcnseg serve`, without a line a request in its log; gives HOST:PORT and the process."""
    quiet = ("--port", "0", "--log-level", "warning")
    return _listening(python, "-m", "fcnseg", "serve", str(model), *quiet, *options)


def serve_beside_loop(model: Path, threads: int) -> AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    """Serve a model file, or a folder of them, with the loop's settings (loop.py), ready for its photograph's size."""
    options = ["--device", "cpu", "--threads", str(threads), "--no-tuned", "--warm", f"{HEIGHT}x{WIDTH}"]
    return serve(model, *options)


def serve_barely(model: Path, threads: int) -> AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    """Serve a model file by bare_server.py; gives HOST:PORT and the process."""
    return _listening(sys.executable, str(BARE), str(model), str(threads))


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextmanager
def _listening(*command: str | Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a command of Python's, on this checkout, while the block runs; gives HOST:PORT and the process."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ON_THIS_CHECKOUT) as process:
        for line in process.stdout or ():
            if match := re.match(r"listening on (\S+)", line):
                break
        else:
            raise SystemExit(f"{' '.join(map(str, command))} did not start")
        try:
            yield match[1], process
        finally:
            process.terminate()
            process.wait()

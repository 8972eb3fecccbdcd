"""Servers for a benchmark, each in a process of its own, on a free port."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from loop import HEIGHT, WIDTH

BARE = Path(__file__).with_name("bare_server.py")


def serve(model: Path, *options: str) -> AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    """Serve a model file by `fcnseg serve`, without a line a request in its log; gives HOST:PORT and the process."""
    return _listening("-m", "fcnseg", "serve", str(model), "--port", "0", "--log-level", "warning", *options)


def serve_beside_loop(model: Path, threads: int) -> AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    """Serve a model file, or a folder of them, with the loop's settings (loop.py), ready for its photograph's size."""
    options = ["--device", "cpu", "--threads", str(threads), "--no-tuned", "--warm", f"{HEIGHT}x{WIDTH}"]
    return serve(model, *options)


def serve_barely(model: Path, threads: int) -> AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    """Serve a model file by bare_server.py; gives HOST:PORT and the process."""
    return _listening(str(BARE), str(model), str(threads))


@contextmanager
def _listening(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run Python on arguments while the block runs; gives HOST:PORT and the process."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if match := re.match(r"listening on (\S+)", line):
                break
        else:
            raise SystemExit(f"{' '.join(arguments)} did not start")
        try:
            yield match[1], process
        finally:
            process.terminate()
            process.wait()

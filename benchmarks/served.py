"""`fcnseg serve` for a benchmark: in a process of its own, on a free port, without a line a request in its log."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serve(model: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve a model file while the block runs; gives HOST:PORT and the process."""
    command = [sys.executable, "-m", "fcnseg", "serve", str(model), "--port", "0", "--log-level", "warning", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if match := re.match(r"listening on (\S+)", line):
                break
        else:
            raise SystemExit(f"{' '.join(command)} did not start")
        try:
            yield match[1], process
        finally:
            process.terminate()
            process.wait()

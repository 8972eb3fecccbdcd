"""The servers that are compared: each starts in a process of its own and serves one model on one port."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peers.environments import Environment
from peers.faces import INFER, SEGMENT, Face, pixels
from served import free_port, serve

_HERE = Path(__file__).parent
_GRACE_S = 20.0
OWN = Environment("fcnseg")


@dataclass(frozen=True)
class Side:
    """One server and one of its faces.

    Attributes:
        name: As options and results name it; a peer's server is the server.py in the folder of this name.
        title: As the table names it.
        face: How it is asked.
        environment: That it runs in.
        options: Of `fcnseg serve`; with `--tuned` it runs the model as `fcnseg tune` found best, and otherwise with the
            threads of all.
    """

    name: str
    title: str
    face: Face
    environment: Environment
    options: tuple[str, ...] = ()

    @property
    def is_peer(self) -> bool:
        return self.environment != OWN

    @property
    def is_tuned(self) -> bool:
        return "--tuned" in self.options

    @contextmanager
    def serve(self, model: Path, threads: int, size: tuple[int, int]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        """Serve the model while the block runs; gives HOST:PORT, where it answers sooner or later, and the process."""
        if not self.is_peer:
            settings = [] if self.is_tuned else ["--no-tuned", "--threads", str(threads)]
            size_option = f"{size[0]}x{size[1]}"
            options = ("--device", "cpu", "--warm", size_option, *settings, *self.options)
            with serve(model, *options, python=self.environment.python) as served:
                yield served
        else:
            with _serve_peer(_HERE / self.name / "server.py", self.environment, model, threads) as served:
                yield served


SIDES = (
    Side("fcnseg", "`fcnseg serve`", INFER, OWN),
    Side("fcnseg-segment", "`fcnseg serve`", SEGMENT, OWN),
    Side("fcnseg-one", "`fcnseg serve --runners 1`", INFER, OWN, ("--runners", "1")),
    Side("fcnseg-tuned", "`fcnseg serve --tuned`", SEGMENT, OWN, ("--tuned",)),
    Side("pytriton", "Triton, PyTriton", INFER, Environment("pytriton")),
    Side("triton", "Triton, Python backend", INFER, Environment("pytriton")),
    Side("kserve", "KServe SDK", INFER, Environment("kserve")),
    Side("mosec", "mosec", pixels("/inference"), Environment("mosec")),
    Side("litserve", "LitServe", pixels("/predict"), Environment("litserve")),
)


@contextmanager
def _serve_peer(
    server: Path, environment: Environment, model: Path, threads: int
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    command: list[str | Path] = [environment.python, server, model.resolve(), str(port), str(threads)]
    variables = {**os.environ, "PYTHONPATH": str(_HERE.parent)}
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, text=True, env=variables, cwd=folder, start_new_session=True
        )
        try:
            yield f"127.0.0.1:{port}", process
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read())
            raise
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End a server, and then whatever it left of its process group."""
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return

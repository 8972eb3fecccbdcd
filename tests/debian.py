"""Programs of Debian's and PyPI's packages that some tests start; where there are none, those tests skip and say so."""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_SBIN = "/usr/sbin"


def needs(program: str, package: str, install: str = "apt-get install --no-install-recommends") -> pytest.MarkDecorator:
    """Skip a test where a program is not installed."""
    reason = f"needs {program}; run '{install} {package}'"
    return pytest.mark.skipif(_find(program) is None, reason=reason)


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Let a program run, its output in a file, and end it."""
    with log.open("wb") as output:
        process = subprocess.Popen(_located(command), stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def output_of(command: Sequence[str]) -> str:
    """Return what a program writes; fail where it fails."""
    done = subprocess.run(_located(command), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _find(program: str) -> str | None:
    places = (os.environ.get("PATH", os.defpath), _SBIN, sysconfig.get_path("scripts"))
    return shutil.which(program, path=os.pathsep.join(places))


def _located(command: Sequence[str]) -> list[str]:
    program = _find(command[0])
    assert program is not None
    return [program, *command[1:]]

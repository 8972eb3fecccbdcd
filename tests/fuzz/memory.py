"""How much memory something takes at its peak, in this process."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20
_PROCESS = Path("/proc/self")


def require_peaks() -> None:
    """Skip a test where the system does not tell of peaks."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        pytest.skip("needs Linux's /proc/self/clear_refs")


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Fail where a block takes more than so many bytes at its peak, native libraries included."""
    (_PROCESS / "clear_refs").write_text("5")  # the peak begins anew
    before = _read("VmRSS")
    yield
    peak = _read("VmHWM") - before
    assert peak <= count, f"{peak / MIB:.0f} MiB were taken, where {count / MIB:.0f} are enough"


def _read(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024

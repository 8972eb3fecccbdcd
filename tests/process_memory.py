"""What Linux tells of a process's memory, and how glibc gives it."""

import ctypes
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)


def resident(pid: int | str = "self") -> int:
    """Return the bytes that a process has in memory now."""
    return _read(pid, "VmRSS")


def peak(pid: int | str = "self") -> int:
    """Return the most bytes that a process has had in memory, native libraries' included."""
    return _read(pid, "VmHWM")


def forget_peak(pid: int | str = "self") -> None:
    """Let a process's peak begin anew.

    Raises:
        OSError: The system does not tell of peaks.
    """
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def reset_allocator() -> None:
    """Let glibc map large blocks and give them back, as in a new process: training keeps all memory, and for good."""
    for option, value in ((_MMAP_MAX, 1 << 16), (_MMAP_THRESHOLD, 128 << 10), (_TRIM_THRESHOLD, 128 << 10)):
        assert ctypes.CDLL(None).mallopt(option, value)


def _read(pid: int | str, name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024

"""What a process holds, read from /proc, and whether it grew."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Held:
    """What a process holds at one moment.

    Attributes:
        memory: Resident bytes.
        threads: Threads.
        files: Open file descriptors.
    """

    memory: int
    threads: int
    files: int

    @classmethod
    def by(cls, pid: int) -> "Held":
        """Return what a process holds now."""
        folder = Path("/proc") / str(pid)
        lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        memory = int(lines["VmRSS"].split()[0]) * 1024
        return cls(memory, int(lines["Threads"]), len(list((folder / "fd").iterdir())))

    def __str__(self) -> str:
        return f"{self.memory / MIB:.0f} MiB, {self.threads} threads, {self.files} descriptors"


def growth(readings: Sequence[int]) -> tuple[int, int]:
    """Return the medians of the second and of the last fifth of readings, at least 10 of them."""
    fifth = len(readings) // 5
    return round(statistics.median(readings[fifth : 2 * fifth])), round(statistics.median(readings[-fifth:]))

"""What a process holds, read from /proc, and whether it grew."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.process_memory import resident

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
        return cls(resident(pid), len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir())))

    def __str__(self) -> str:
        return f"{self.memory / MIB:.0f} MiB, {self.threads} threads, {self.files} descriptors"


def medians(readings: Sequence[int]) -> tuple[int, int]:
    """Return the medians of the second and of the last fifth of at least 10 readings."""
    fifth = len(readings) // 5
    return round(statistics.median(readings[fifth : 2 * fifth])), round(statistics.median(readings[-fifth:]))


def grown(rests: Sequence[int]) -> tuple[int, int]:
    """Return the highest of all readings but the last two, and the lower of those, which is above it in a leak."""
    return max(rests[:-2]), min(rests[-2:])

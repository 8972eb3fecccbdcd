"""Limits of control groups on this process: those of a container, a systemd unit, or a batch system's job.

A group's limit applies to all groups below it, so the lowest limit between the process's own group and the root counts.
In a container the root is often the container's own group, and the process's path may be valid only on the host: a
missing group counts as having no limit. https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
"""Where the kernel mounts the groups: version 2 of the interface here, version 1 in a folder for each controller."""
OWN = Path("/proc/self/cgroup")
"""The file with the groups of this process."""
_VERSION_2 = ""


def memory_limit(root: Path = ROOT, own: Path = OWN) -> int | None:
    """Return how many bytes of memory the process's group may use in total; None if there is no limit."""
    told = [
        *_read(root, own, _VERSION_2, ["memory.max"]),
        *_read(root, own, "memory", ["memory.limit_in_bytes"]),
    ]
    return min((limit for (limit,) in told), default=None)


def cpu_quota(root: Path = ROOT, own: Path = OWN) -> float:
    """Return how many CPUs' time the process's group may use in total; infinity if there is no quota."""
    told = [
        *_read(root, own, _VERSION_2, ["cpu.max"], count=2),
        *_read(root, own, "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"], count=2),
    ]
    return min((quota / period for quota, period in told if quota > 0 and period > 0), default=math.inf)  # -1: no quota


def _read(root: Path, own: Path, controller: str, files: Sequence[str], count: int = 1) -> list[list[int]]:
    """Return the numbers in files of the groups up to the root; files with "max" or another count are left out."""
    path = _own_path(own, controller)
    found = []
    for group in (path, *path.parents):
        try:
            words = [word for name in files for word in (root / controller / group / name).read_text().split()]
            numbers = [int(word) for word in words]
        except (OSError, ValueError):  # not there, or "max"
            continue
        if len(numbers) == count:
            found.append(numbers)
    return found


def _own_path(own: Path, controller: str) -> PurePosixPath:
    """Return the process's group of a controller, relative to the root; the root itself if it is unknown."""
    try:
        lines = own.read_text(errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controller in controllers.split(",") and ".." not in path.split("/"):  # "..": outside the namespace's root
            return PurePosixPath(path.lstrip("/"))
    return PurePosixPath()

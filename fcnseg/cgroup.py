"""What control groups leave to this process: those of a container, of a systemd unit, of a batch system's job.

A group's limit binds all groups below it, so that the least between the process's own group and the root counts. In a
container the root is often the container's own group, and the process's path may be one that only the host knows:
groups that are not there have no limit. https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
"""Where the kernel shows the groups; version 2 of the interface here, and version 1 in a folder for each controller."""
OWN = Path("/proc/self/cgroup")
"""Where it tells which of them the process is in."""
_VERSION_2 = ""


def memory_limit(root: Path = ROOT, own: Path = OWN) -> int | None:
    """Return how many bytes of memory this process may have together with its group; None where there is no limit."""
    told = [
        *_read(root, own, _VERSION_2, ["memory.max"]),
        *_read(root, own, "memory", ["memory.limit_in_bytes"]),
    ]
    return min((limit for (limit,) in told), default=None)


def cpu_quota(root: Path = ROOT, own: Path = OWN) -> float:
    """Return how many CPUs' time this process may take together with its group; infinity where there is no quota."""
    told = [
        *_read(root, own, _VERSION_2, ["cpu.max"], count=2),
        *_read(root, own, "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"], count=2),
    ]
    return min((quota / period for quota, period in told if quota > 0 and period > 0), default=math.inf)  # -1 is none


def _read(root: Path, own: Path, controller: str, files: Sequence[str], count: int = 1) -> list[list[int]]:
    """Return the numbers in files of the groups on the way to the root, where there are `count` and not "max"."""
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
    """Return which group of a controller the process is in, below the root; the root where that is not told."""
    try:
        lines = own.read_text(errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controller in controllers.split(",") and ".." not in path.split("/"):  # that is beyond a namespace's root
            return PurePosixPath(path.lstrip("/"))
    return PurePosixPath()

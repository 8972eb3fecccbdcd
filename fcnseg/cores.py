"""How many CPUs there are for this process: a container may have fewer than its machine, and a core may be two."""

import math
import os
from pathlib import Path

from fcnseg import cgroup

MOST_THREADS = 1024
"""More than any machine is for: onnxruntime starts them all at once, and would take minutes for a hundred thousand."""
_CPUS = Path("/sys/devices/system/cpu")


def usable_cores(groups: Path = cgroup.ROOT, own: Path = cgroup.OWN) -> int:
    """Return how many CPUs this process may use, at least 1.

    They are those that it may run on (its affinity, as a cpuset or `taskset` sets it), or the time of CPUs that its
    container or unit has (a quota, as `docker run --cpus`, the CPU limit of Kubernetes and systemd's CPUQuota set it)
    where that is less.

    Args:
        groups: Where the kernel shows control groups.
        own: Where it tells which of them the process is in.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(usable, cgroup.cpu_quota(groups, own)))


def physical_cores() -> int:
    """Return how many cores this process may use, at least 1; CPUs that share a core's units count once."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    siblings = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return min(len(siblings), usable_cores())


def threads_for(threads: int) -> int:
    """Return how many threads onnxruntime is to be told of: as many as were asked for.

    0 leaves it to onnxruntime, which takes one for each physical core; but where there are fewer CPUs for this process
    than the machine has, one for each of them: onnxruntime counts all, and binds threads to those that it may not use.

    Args:
        threads: What was asked for.
    """
    usable = usable_cores()
    return usable if threads == 0 and usable < (os.cpu_count() or 1) else threads


def threads_beside(threads: int, runs: int) -> int:
    """Return how many threads each of some runs has that go on side by side and share those of one alone; at least 1.

    Args:
        threads: What one that is alone has, 0 for one per physical core.
        runs: How many there are.
    """
    return max(1, math.ceil((threads_for(threads) or physical_cores()) / runs))


def _siblings(cpu: int) -> str:
    """Name the core of a CPU."""
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)

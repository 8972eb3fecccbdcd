"""How many CPUs this process may use: a container may have fewer than its machine, and a core may count as two."""

import math
import os
from pathlib import Path

from fcnseg import cgroup

MOST_THREADS = 1024
"""More than any machine needs: onnxruntime starts all threads at once, which takes minutes for a hundred thousand."""
_CPUS = Path("/sys/devices/system/cpu")


def usable_cores(groups: Path = cgroup.ROOT, own: Path = cgroup.OWN) -> int:
    """Return how many CPUs this process may use, at least 1.

    These are the CPUs that it may run on (its affinity, set by a cpuset or `taskset`), or the CPU time of its container
    or unit if that is less (a quota, set by `docker run --cpus`, the CPU limit of Kubernetes or systemd's CPUQuota).

    Args:
        groups: Where the kernel mounts the control groups.
        own: The file with the groups of this process.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(usable, cgroup.cpu_quota(groups, own)))


def physical_cores() -> int:
    """Return how many cores this process may use, at least 1; CPUs that share a core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    siblings = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return min(len(siblings), usable_cores())


def threads_for(threads: int) -> int:
    """Return the number of threads to set in onnxruntime: the requested number.

    0 leaves it to onnxruntime, which uses one for each physical core. But if this process may use fewer CPUs than the
    machine has, it becomes one for each of these: onnxruntime counts all, and binds threads to forbidden CPUs.

    Args:
        threads: The requested number.
    """
    usable = usable_cores()
    return usable if threads == 0 and usable < (os.cpu_count() or 1) else threads


def threads_beside(threads: int, runs: int) -> int:
    """Return how many threads each of several runs side by side gets, which divide those of a single run; at least 1.

    Args:
        threads: The threads of a single run, 0 for one per physical core.
        runs: The number of runs side by side.
    """
    return max(1, math.ceil((threads_for(threads) or physical_cores()) / runs))


def _siblings(cpu: int) -> str:
    """Return an identifier of a CPU's core."""
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)

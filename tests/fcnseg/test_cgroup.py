"""Limits of control groups, of both versions of the interface, from the process's own group up to the root."""

import math
from pathlib import Path

import pytest

from fcnseg.cgroup import cpu_quota, memory_limit
from fcnseg.cores import usable_cores
from serving.memory import machine_memory

GIB = 1 << 30
UNLIMITED = 9223372036854771712  # version 1's word for no limit
UNIT = "0::/system.slice/fcnseg.service\n"
JOB = "5:memory:/batch/job_7\n4:cpu,cpuacct:/batch/job_7\n1:name=systemd:/user.slice\n0::/user.slice\n"
DOCKER = "5:memory:/docker/0a1b\n4:cpuacct,cpu:/docker/0a1b\n0::/docker/0a1b\n"


def lay_out(folder: Path, own: str, files: dict[str, str | int]) -> tuple[Path, Path]:
    """Write what the kernel tells, and return what stands for /sys/fs/cgroup and /proc/self/cgroup."""
    (folder / "own").write_text(own)
    for name, content in files.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return folder / "root", folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        (UNIT, {"system.slice/fcnseg.service/memory.max": 8 * GIB}, 8 * GIB),
        (UNIT, {"system.slice/memory.max": 4 * GIB, "system.slice/fcnseg.service/memory.max": 8 * GIB}, 4 * GIB),
        (UNIT, {"system.slice/memory.max": 4 * GIB, "system.slice/fcnseg.service/memory.max": "max"}, 4 * GIB),
        (UNIT, {"system.slice/other.service/memory.max": GIB, "system.slice/fcnseg.service/memory.max": "max"}, None),
        ("0::/\n", {"memory.max": 2 * GIB}, 2 * GIB),
        ("0::/../other\n", {"memory.max": 2 * GIB, "../other/memory.max": GIB}, 2 * GIB),
        ("0::/a:b\n", {"a:b/memory.max": 2 * GIB}, 2 * GIB),
        ("", {"memory.max": 2 * GIB}, 2 * GIB),
        (JOB, {"memory/batch/job_7/memory.limit_in_bytes": 3 * GIB}, 3 * GIB),
        (
            JOB,
            {
                "memory/batch/job_7/memory.limit_in_bytes": 3 * GIB,
                "memory/batch/memory.limit_in_bytes": 2 * GIB,
                "memory/memory.limit_in_bytes": UNLIMITED,
            },
            2 * GIB,
        ),
        (DOCKER, {"memory/memory.limit_in_bytes": GIB}, GIB),  # what is mounted there is the container's group
        (UNIT, {}, None),
    ],
)
def test_the_least_limit_on_memory_counts(
    tmp_path: Path, own: str, files: dict[str, str | int], limit: int | None
) -> None:
    assert memory_limit(*lay_out(tmp_path, own, files)) == limit


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        (UNIT, {"system.slice/fcnseg.service/cpu.max": "150000 100000"}, 1.5),
        (UNIT, {"system.slice/cpu.max": "5000 10000", "system.slice/fcnseg.service/cpu.max": "150000 100000"}, 0.5),
        (UNIT, {"system.slice/fcnseg.service/cpu.max": "max 100000"}, math.inf),
        (JOB, {"cpu/batch/job_7/cpu.cfs_quota_us": 25000, "cpu/batch/job_7/cpu.cfs_period_us": 100000}, 0.25),
        (
            JOB,
            {
                "cpu/batch/job_7/cpu.cfs_quota_us": -1,
                "cpu/batch/job_7/cpu.cfs_period_us": 100000,
                "cpu/batch/cpu.cfs_quota_us": 300000,
                "cpu/batch/cpu.cfs_period_us": 100000,
            },
            3,
        ),
        (DOCKER, {"cpu/cpu.cfs_quota_us": 50000, "cpu/cpu.cfs_period_us": 100000}, 0.5),
        (UNIT, {"cpu.max": "100000"}, math.inf),
        (UNIT, {}, math.inf),
    ],
)
def test_the_least_quota_of_cpus_counts(tmp_path: Path, own: str, files: dict[str, str | int], quota: float) -> None:
    assert cpu_quota(*lay_out(tmp_path, own, files)) == quota


def test_the_budget_and_the_cores_are_those_of_the_unit(tmp_path: Path) -> None:
    files = {"memory.max": 1 << 20, "cpu.max": "50000 100000"}
    told = lay_out(tmp_path, UNIT, {f"system.slice/fcnseg.service/{name}": text for name, text in files.items()})
    assert machine_memory(*told) == 1 << 20
    assert usable_cores(*told) == 1


def test_a_machine_without_groups_has_its_own_memory(tmp_path: Path) -> None:
    assert machine_memory(tmp_path / "none", tmp_path / "none") >= machine_memory()
    assert memory_limit(tmp_path / "none", tmp_path / "none") is None

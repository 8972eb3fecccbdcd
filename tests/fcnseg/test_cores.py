import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcnseg.cores import physical_cores, threads_beside, threads_for, usable_cores

CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, CPUS),
        ({"cpu.max": "100000000 100000\n"}, CPUS),
        ({"cpu/cpu.cfs_quota_us": "10000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CPUS),
        ({"cpu/cpu.cfs_quota_us": "100000\n"}, CPUS),
        ({}, CPUS),
    ],
)
def test_a_container_has_no_more_cpus_than_its_quota(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == expected


def test_a_core_of_several_cpus_is_one() -> None:
    told = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
    alone = told.exists() and told.read_text().strip() == "0"
    assert 1 <= physical_cores() <= usable_cores()
    assert not alone or CPUS < 2 or physical_cores() > 1


def test_threads_that_were_asked_for_are_taken() -> None:
    assert threads_for(7) == 7


@pytest.mark.skipif(CPUS < 2, reason="there is one CPU")
def test_a_model_has_no_more_threads_than_cpus_that_it_may_run_on(tiny_model: Path) -> None:
    """One thread within an operator is the caller's own."""
    program = (
        "import os, sys, fcnseg\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "fcnseg.load(sys.argv[1], 'cpu')\n"
        "before = os.listdir('/proc/self/task')\n"
        "kept = fcnseg.load(sys.argv[1], 'cpu')\n"
        "assert os.listdir('/proc/self/task') == before\n"
    )
    subprocess.run([sys.executable, "-c", program, tiny_model], check=True, timeout=180)


def test_runs_side_by_side_share_the_threads_of_one_alone() -> None:
    shares = [threads_beside(threads, runs) for threads, runs in ((8, 1), (8, 2), (8, 3), (3, 2), (1, 4))]
    assert shares == [8, 4, 3, 2, 1]
    assert threads_beside(0, 1) == physical_cores()

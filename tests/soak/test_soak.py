"""A few seconds of the soak that `make soak` runs for long."""

import sys
from pathlib import Path

import pytest

from tests.soak.gauge import grown
from tests.soak.run import soak


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_a_server_stands_what_clients_and_operators_do(tmp_path: Path) -> None:
    report = soak(tmp_path, seconds=6, seed=1, options=("--runners", "2"))
    assert not report.problems, str(report)
    assert report.exit_code == 0
    assert sum(report.tally.checked.values()) > 50, str(report)
    assert sum(report.changes.values()) > 1, str(report)


def test_growth_is_told_from_noise() -> None:
    assert grown([5, 9, 6, 7, 8]) == (9, 7)
    assert grown([1, 2, 3, 4, 5]) == (3, 4)

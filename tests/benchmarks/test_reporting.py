"""What benchmarks share: turns, ratios and reports."""

import importlib
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
SLOW_S = 0.2


@pytest.fixture
def reporting(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("reporting")


def test_sides_take_turns_and_every_second_round_goes_backwards(reporting: ModuleType) -> None:
    ran: list[str] = []
    sides = {name: lambda name=name: ran.append(name) for name in "abc"}
    found = reporting.in_turns(sides, 3)
    assert "".join(ran) == "abc" + "abc" + "cba" + "abc"
    assert [len(spread.values) for spread in found.values()] == [3, 3, 3]


def test_the_first_run_of_a_turn_does_not_count(reporting: ModuleType) -> None:
    ran = [""]

    def work(name: str) -> None:
        end = time.perf_counter() + (0 if ran[-1] == name else SLOW_S)
        ran.append(name)
        while time.perf_counter() < end:
            pass

    found = reporting.in_turns({name: lambda name=name: work(name) for name in "ab"}, 2, at_least_s=SLOW_S / 20)
    assert all(max(spread.values) < SLOW_S for spread in found.values())


def test_ratios_are_of_the_two_sides_of_one_round(reporting: ModuleType) -> None:
    ours, theirs = reporting.Spread.of([1, 4, 3]), reporting.Spread.of([2, 4, 12])
    ratio = theirs.over(ours)
    assert ratio.values == (2, 1, 4)
    assert ratio.median == 2  # that of the medians is 4/3
    assert str(ratio) == "2 (1 to 4)"
    assert str(ours.over(ours)) == "1"
    with pytest.raises(ValueError, match="zip"):
        ours.over(reporting.Spread.of([1]))

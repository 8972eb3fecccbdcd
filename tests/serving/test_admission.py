import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.engine import EngineOptions
from fcnseg.segmenter import load
from serving.admission import Admission
from serving.batcher import Batcher, BatchingConfig
from serving.errors import OverloadedError
from serving.memory import MemoryBudget, machine_memory
from serving.pace import Pace, PaceBySize
from tests.process_memory import resident
from tests.waiting import wait_until

RED = np.full((4, 4, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def batcher(tiny_model: Path) -> Batcher:
    return Batcher(load(tiny_model, "cpu"), BatchingConfig(max_batch=2, max_queue=3), MemoryBudget(2**30), "test")


def test_no_more_images_are_let_in_than_the_queue_holds(batcher: Batcher) -> None:
    admission = Admission(batcher, MemoryBudget(100))
    tickets = [admission.enter() for _ in range(3)]
    with pytest.raises(OverloadedError, match="3 images wait or run, and the model's queue is full") as caught:
        admission.enter()
    assert 0 < caught.value.retry_after_s <= 10
    tickets[0].ran()  # its answer is still being written
    admission.enter().close()
    assert admission.pending == 2
    for ticket in tickets:
        ticket.close()
        ticket.close()
    assert admission.pending == 0


def test_no_more_bytes_are_let_in_than_the_memory_holds_until_answers_are_written(batcher: Batcher) -> None:
    memory = MemoryBudget(100)
    admission = Admission(batcher, memory)
    with closing(admission.enter()) as first:
        first.reserve(4, 4, 60, None)
        words = "60 of 100 bytes are taken, and this request needs 50"
        with closing(admission.enter()) as second, pytest.raises(OverloadedError, match=words):
            second.reserve(4, 4, 50, None)
        first.ran()
        assert memory.taken == 60
    assert memory.taken == 0
    with closing(admission.enter()) as third:
        third.reserve(4, 4, 100, None)


def test_an_image_that_would_be_answered_too_late_is_refused_on_arrival(batcher: Batcher) -> None:
    admission = Admission(batcher, MemoryBudget(10**6))
    batcher.pace.add(16, 1, 16.0)
    with closing(admission.enter()) as first, closing(admission.enter()) as second:
        first.reserve(4, 4, 1, 0.001)  # an idle model takes whatever comes
        with pytest.raises(OverloadedError, match=r"would take about 48000 ms and the deadline leaves 47000 ms"):
            second.reserve(4, 4, 1, 47.0)  # 16 s of the first, and up to two images in its own run
        with closing(admission.enter()) as third:
            third.reserve(4, 4, 1, 65.0)
    with closing(admission.enter()) as alone:
        alone.reserve(4, 4, 1, 0.001)


@contextmanager
def paced(model: Path, config: BatchingConfig, seconds: float) -> Iterator[Admission]:
    """Yield the door of a model that takes so many seconds for an image of 4x4."""
    batcher = Batcher(load(model, "cpu"), config, MemoryBudget(2**30), "test")
    batcher.pace.add(16, 1, seconds)
    try:
        yield Admission(batcher, MemoryBudget(100))
    finally:
        batcher.close()


@pytest.mark.parametrize(
    ("config", "finishing_s", "expected_ms"),
    [
        (BatchingConfig(max_batch=1), 0.0, 32_000),  # the one ahead, and its own run
        (BatchingConfig(max_batch=1, max_delay_s=5.0), 0.0, 37_000),
        (BatchingConfig(max_batch=1), 3.0, 35_000),
        (BatchingConfig(max_batch=1, runners=2), 0.0, 24_000),
    ],
    ids=["plain", "delay", "finishing", "runners"],
)
def test_what_is_expected_of_an_answer_is_the_sum_of_all_that_it_waits_for(
    tiny_model: Path, config: BatchingConfig, finishing_s: float, expected_ms: int
) -> None:
    with (
        paced(tiny_model, config, 16.0) as admission,
        closing(admission.enter()) as first,
        closing(admission.enter()) as second,
    ):
        admission.finished(16, finishing_s, frozenset())
        first.reserve(4, 4, 1, None)
        with pytest.raises(OverloadedError, match=f"would take about {expected_ms} ms "):
            second.reserve(4, 4, 1, 1.0)
        second.reserve(4, 4, 1, expected_ms / 1000)


@pytest.mark.parametrize(
    ("runners", "seconds", "retry_after_s"), [(1, 4.0, 6.0), (2, 4.0, 3.0), (1, 400.0, 10.0), (1, 0.001, 0.02)]
)
def test_who_is_refused_may_ask_again_when_half_of_what_is_under_way_is_done_or_a_little_later(
    tiny_model: Path, runners: int, seconds: float, retry_after_s: float
) -> None:
    """But not for more than 10 s, nor before 20 ms; not all at the same moment."""
    config = BatchingConfig(max_queue=3, runners=runners)
    with paced(tiny_model, config, seconds) as admission, ExitStack() as tickets:
        for _ in range(3):
            tickets.enter_context(closing(admission.enter())).reserve(4, 4, 10, None)
        for ask, least in ((admission.enter, 0.0), (lambda: admission.take_memory(100), 0.2)):
            told = []
            for _ in range(50):
                with pytest.raises(OverloadedError) as caught:
                    ask()
                told.append(caught.value.retry_after_s)
            first = max(least, retry_after_s)
            assert first * 0.999 <= min(told) <= max(told) <= min(10, 1.5 * first)
            assert max(told) == 10 or max(told) > 1.2 * min(told)


def test_a_budget_gives_what_there_is_and_takes_it_back() -> None:
    budget = MemoryBudget(10)
    budget.take(6)
    assert not budget.try_take(5)
    assert budget.try_take(4)
    taken = threading.Event()
    thread = threading.Thread(target=lambda: (budget.take(8), taken.set()))
    thread.start()
    assert not taken.wait(0.1)
    budget.give_back(6)
    assert not taken.wait(0.1)
    budget.give_back(4)
    assert taken.wait(60)
    assert budget.taken == 8
    with pytest.raises(ValueError, match="11 bytes were asked of a budget of 10"):
        budget.take(11)


def test_a_budget_gives_in_the_order_in_which_it_is_asked() -> None:
    """Else one who asks for much would wait for as long as others ask for little."""
    budget = MemoryBudget(100)
    large, small = threading.Event(), threading.Event()
    budget.take(60)
    threading.Thread(target=lambda: (budget.take(90), large.set()), daemon=True).start()
    wait_until(lambda: not budget.try_take(0))
    threading.Thread(target=lambda: (budget.take(30), small.set()), daemon=True).start()
    assert not small.wait(0.1)
    budget.give_back(60)
    assert large.wait(60)
    assert budget.taken == 90
    assert not small.is_set()
    budget.give_back(90)
    assert small.wait(60)
    assert budget.try_take(70)


def test_what_a_budget_has_for_several_who_wait_they_get_at_once() -> None:
    budget = MemoryBudget(100)
    budget.take(100)
    taken = [threading.Event() for _ in range(3)]
    for event in taken:
        threading.Thread(target=lambda event=event: (budget.take(30), event.set()), daemon=True).start()
    wait_until(lambda: not budget.try_take(0))
    budget.give_back(100)
    assert all(event.wait(60) for event in taken)


def test_the_memory_of_this_machine_is_at_least_what_this_process_holds() -> None:
    assert resident() < machine_memory() < 2**50


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_pace_stays_within_its_values_and_begins_with_the_first(values: list[float]) -> None:
    pace = Pace()
    assert (pace.mean, pace.cautious) == (0, 0)
    for i, value in enumerate(values):
        pace.add(value)
        least, most = min(values[: i + 1]), max(values[: i + 1])
        assert least * (1 - 1e-9) <= pace.mean <= most * (1 + 1e-9)
        assert 0 <= pace.deviation <= (most - least) * (1 + 1e-9)
        assert i > 0 or pace.mean == pace.cautious == value


@pytest.mark.parametrize("unsteady", [False, True])
def test_the_less_steady_the_pace_the_less_is_promised(unsteady: bool) -> None:  # noqa: FBT001
    pace = Pace()
    values = [0.6 if unsteady and i % 2 else 1.0 for i in range(200)]
    for value in values:
        pace.add(value)
    if unsteady:
        assert max(values) < pace.cautious < 2 * max(values)
    else:
        assert pace.cautious == 1.0


def test_what_small_images_take_is_not_held_against_large_ones(batcher: Batcher) -> None:
    admission = Admission(batcher, MemoryBudget(10**6))
    batcher.pace.add(16, 1, 0.02)  # nearly all of it what any run costs: 480 x 640 images would take six minutes
    with closing(admission.enter()) as first, closing(admission.enter()) as second:
        first.reserve(4, 4, 1, 0.1)
        second.reserve(480, 640, 1, 0.1)
    batcher.pace.add(480 * 640, 1, 0.2)
    with closing(admission.enter()) as first, closing(admission.enter()) as second:
        first.reserve(4, 4, 1, 0.1)
        with pytest.raises(OverloadedError, match="would take about 420 ms"):  # two such images may share its run
            second.reserve(480, 640, 1, 0.1)
        second.reserve(480, 640, 1, 0.5)


def test_what_large_answers_take_to_write_is_not_held_against_small_ones(batcher: Batcher) -> None:
    admission = Admission(batcher, MemoryBudget(10**6))
    batcher.pace.add(16, 1, 0.01)
    admission.finished(16, 0.01, frozenset())
    admission.finished(480 * 640, 3.5, frozenset())
    with closing(admission.enter()) as first, closing(admission.enter()) as second:
        first.reserve(4, 4, 1, None)
        with pytest.raises(OverloadedError, match="would take about 40 ms"):
            second.reserve(4, 4, 1, 0.03)
        second.reserve(4, 4, 1, 0.05)
        with closing(admission.enter()) as third, pytest.raises(OverloadedError, match="would take about 3540 ms"):
            third.reserve(480, 640, 1, 1.0)  # four runs, and what its size takes to write


def test_extras_that_took_long_once_keep_out_no_others_like_them_while_none_is_under_way(batcher: Batcher) -> None:
    """Else they would never be seen to take less, as long as there is something else to do."""
    admission, regions = Admission(batcher, MemoryBudget(10**6)), frozenset({"regions"})
    batcher.pace.add(16, 1, 0.01)
    admission.finished(16, 60.0, regions)
    with closing(admission.enter()) as plain, closing(admission.enter()) as first, closing(admission.enter()) as second:
        plain.reserve(4, 4, 1, None)
        first.reserve(4, 4, 1, 1.0, regions)
        with pytest.raises(OverloadedError, match="would take about 60040 ms"):
            second.reserve(4, 4, 1, 1.0, regions)
        first.ran()
        second.reserve(4, 4, 1, 1.0, regions)


def test_an_image_is_paced_by_those_of_its_size_or_by_the_least_it_can_take() -> None:
    pace = PaceBySize()
    assert pace.seconds(100) == pace.cautious_seconds(100) == 0
    pace.add(100, 1, 1.0)
    pace.add(1000, 4, 4.0)
    assert [pace.knows(pixels) for pixels in (63, 64, 127, 128, 511, 512, 1023, 1024)] == [
        False, True, True, False, False, True, True, False,
    ]  # fmt: skip
    assert pace.seconds(120) == pytest.approx(1.2)
    assert pace.seconds(600) == pytest.approx(0.6)
    assert pace.seconds(200) == pytest.approx(0.2)  # at the pace of larger ones
    assert pace.seconds(10) == pytest.approx(0.1)
    assert pace.seconds(10**6) == pytest.approx(0.512)  # as long as the largest


@given(st.lists(st.tuples(st.integers(1, 2**20), st.floats(1e-6, 10)), min_size=1), st.integers(1, 2**24))
def test_a_size_that_came_alone_is_paced_by_itself(runs: list[tuple[int, float]], pixels: int) -> None:
    pace = PaceBySize()
    for size, seconds in runs:
        pace.add(size, 1, seconds)
    same = [seconds / size for size, seconds in runs if pace.octave(size) == pace.octave(pixels)]
    assert pace.knows(pixels) == bool(same)
    assert 0 < pace.seconds(pixels) <= pace.cautious_seconds(pixels)
    if same:
        assert min(same) * pixels * (1 - 1e-9) <= pace.seconds(pixels) <= max(same) * pixels * (1 + 1e-9)


def test_what_a_run_takes_is_measured(tiny_model: Path) -> None:
    segmenter = load(tiny_model, "cpu", options=EngineOptions(prove=True))
    batcher = Batcher(segmenter, BatchingConfig(), MemoryBudget(2**30), "test")
    # Three float channels of the image, and the scores at pixels: at least 24 bytes a pixel at once.
    assert 24 * 64 <= batcher.run_bytes(7, 6) <= 2000 * 64
    assert batcher.run_bytes(8, 8) == batcher.run_bytes(5, 5)
    batcher.close()

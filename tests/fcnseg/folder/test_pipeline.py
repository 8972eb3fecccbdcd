import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnseg.errors import FcnsegError
from fcnseg.folder.memory import OrderedMemory
from fcnseg.folder.pipeline import Pipeline, Widths
from tests.waiting import wait_until


class Stages:
    """Squares numbers in three stages that take their time, and remembers what was under way."""

    def __init__(self, widths: Widths, pauses: Sequence[float] = (0,), kinds: int = 1) -> None:
        self.begun = 0
        self.batches: list[list[int]] = []
        self.written: list[int] = []
        self._pauses, self._kinds = pauses, kinds
        self.pipeline = Pipeline(self.decode, self.kind, self.segment, self.write, widths)

    def decode(self, item: int) -> int:
        self.begun += 1
        time.sleep(self._pauses[item % len(self._pauses)])
        return item

    def kind(self, item: int) -> int:
        return item % self._kinds

    def segment(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        time.sleep(self._pauses[-items[0] % len(self._pauses)])
        return [item * item for item in items]

    def write(self, item: int, decoded: int, answer: int) -> tuple[int, int]:
        assert item == decoded
        self.written.append(item)
        return item, answer


widths = st.builds(Widths, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))


@settings(max_examples=30)
@given(
    widths, st.lists(st.sampled_from([0, 0.001, 0.003]), min_size=1, max_size=4), st.integers(0, 40), st.integers(1, 3)
)
def test_results_come_in_order_each_from_a_batch_of_its_kind(
    widths: Widths, pauses: list[float], count: int, kinds: int
) -> None:
    stages = Stages(widths, pauses, kinds)
    assert list(stages.pipeline.results(range(count))) == [(i, i * i) for i in range(count)]
    stages.pipeline.close()
    assert sorted(item for batch in stages.batches for item in batch) == list(range(count))
    for batch in stages.batches:
        assert len(batch) <= widths.batch
        assert len({item % kinds for item in batch}) == 1


def test_no_more_is_begun_than_the_widths_allow() -> None:
    widths = Widths(2, 1, 2)
    stages = Stages(widths)
    results = stages.pipeline.results(range(1000))
    for taken in range(1, 20):
        next(results)
        time.sleep(0.005)
        assert stages.begun <= taken + widths.under_way
    stages.pipeline.close()


def test_what_waits_while_the_engine_runs_becomes_a_batch() -> None:
    stages = Stages(Widths(2, 1, 1, batch=4))
    waiting = stages.pipeline._unanswered

    def segment(items: Sequence[int]) -> list[int]:
        if items[0] == 0:
            wait_until(lambda: len(waiting) == 12 - len(items) and all(job.decoded.done() for job in waiting))
        return stages.segment(items)

    stages.pipeline._segment = segment
    list(stages.pipeline.results(range(12)))
    stages.pipeline.close()
    assert len(stages.batches[1]) == 4


@pytest.mark.parametrize("stage", ["decode", "segment", "write"])
def test_an_error_of_a_stage_is_raised_in_its_items_turn_and_nothing_before_it_is_lost(stage: str) -> None:
    stages = Stages(Widths(2, 1, 2))

    def fail(item: object, *rest: object) -> object:
        number = item[0] if isinstance(item, list) else item
        if number == 7:
            raise OSError("no space")
        return original(item, *rest)

    original = getattr(stages, stage)
    setattr(stages.pipeline, f"_{stage}", fail)
    results = stages.pipeline.results(range(1000))
    found = [next(results)[0] for _ in range(7)]
    with pytest.raises(OSError, match="no space"):
        next(results)
    found += [item for item, _ in stages.pipeline.finish()]
    stages.pipeline.close()
    assert sorted(found) == sorted(stages.written), "whatever was written is told"
    assert len(stages.written) < 50


def test_closing_ends_the_wait_of_every_stage() -> None:
    stages = Stages(Widths(1, 1, 1), [0.05])
    results = stages.pipeline.results(range(100))
    next(results)
    stages.pipeline.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fcnseg-")]


@settings(max_examples=30)
@given(st.integers(1, 50), st.lists(st.integers(0, 60), min_size=1, max_size=12), st.randoms())
def test_memory_is_given_in_order_and_never_more_than_there_is_but_to_one_alone(
    total: int, sizes: list[int], random: object
) -> None:
    memory = OrderedMemory(total)
    held: dict[int, int] = {}
    order: list[int] = []
    lock = threading.Lock()

    def work(turn: int) -> None:
        memory.take(turn, sizes[turn])
        with lock:
            held[turn] = sizes[turn]
            order.append(turn)
            assert sum(held.values()) <= total or len([size for size in held.values() if size]) == 1
            del held[turn]
        memory.give_back(sizes[turn])

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(len(sizes))]
    random.shuffle(threads)  # type: ignore[attr-defined]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(order) == list(range(len(sizes)))


def test_closed_memory_lets_nobody_wait() -> None:
    memory = OrderedMemory(10)
    memory.take(0, 10)
    raised = threading.Event()

    def wait() -> None:
        with pytest.raises(FcnsegError, match="was ended"):
            memory.take(1, 1)
        raised.set()

    thread = threading.Thread(target=wait)
    thread.start()
    memory.close()
    wait_until(raised.is_set)
    thread.join()

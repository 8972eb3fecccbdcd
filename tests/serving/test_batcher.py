import gc
import math
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnseg.engine import Engine, EngineOptions
from fcnseg.errors import UsageError
from fcnseg.segmenter import Segmenter, load
from serving.batcher import Batcher, BatchingConfig, Executed
from serving.errors import StoppingError, TooLateError
from serving.memory import MemoryBudget
from tests.gated_segmenter import GatedSegmenter
from tests.image_folders import noise
from tests.tiny_model import write_tiny_model

MEMORY = MemoryBudget(2**30)
PROVED = EngineOptions(threads=1, prove=True)
SHARED = EngineOptions(threads=2, runs=2, prove=True)
TRAINED = Path(__file__).parent.parent / "golden" / "scenes-fcn8s.onnx"
RED = np.full((4, 4, 3), (255, 0, 0), np.uint8)
MAGENTA = np.full((4, 4, 3), (255, 0, 255), np.uint8)


@contextmanager
def batching(
    segmenter: Segmenter,
    memory: MemoryBudget = MEMORY,
    *,
    max_batch: int = 8,
    delay_s: float = 0,
    runners: int = 1,
    powers_of_two: bool = False,
) -> Iterator[Batcher]:
    config = BatchingConfig(max_batch, delay_s, runners=runners, powers_of_two=powers_of_two)
    batcher = Batcher(segmenter, config, memory, "test")
    try:
        yield batcher
    finally:
        batcher.close()


def sizes(segmenter: GatedSegmenter) -> list[int]:
    return [len(batch) for batch in segmenter.batches]


@pytest.fixture
def gated(tiny_model: Path) -> GatedSegmenter:
    return GatedSegmenter(tiny_model, PROVED)


def hold(batcher: Batcher, gated: GatedSegmenter) -> Future[Executed]:
    """Submit an image whose run has begun and waits for the gate, so that what follows has to queue."""
    first = batcher.submit(RED)
    assert gated.begun.acquire(timeout=60)
    return first


def test_an_idle_model_runs_an_image_at_once_and_a_busy_one_takes_what_waits_together(gated: GatedSegmenter) -> None:
    with batching(gated, max_batch=4) as batcher:
        futures = [hold(batcher, gated)] + [batcher.submit(noise(4, 4, i)) for i in range(6)]
        gated.gate.set()
        answers = [future.result(60) for future in futures]
    assert sizes(gated) == [1, 4, 2]
    assert [answer.batch_size for answer in answers] == [1, 4, 4, 4, 4, 2, 2]
    assert all(answer.queue_s >= 0 and answer.infer_s > 0 for answer in answers)


def test_runs_may_take_as_many_images_as_a_power_of_two_or_as_many_as_they_can(gated: GatedSegmenter) -> None:
    with batching(gated, max_batch=6, powers_of_two=True) as batcher:
        futures = [hold(batcher, gated)] + [batcher.submit(noise(4, 4, i)) for i in range(11)]
        gated.gate.set()
        answers = [future.result(60) for future in futures]
    assert sizes(gated) == [1, 6, 4, 1]
    for i, answer in enumerate(answers[1:]):
        assert np.array_equal(answer.segmentation.class_map, gated.segment(noise(4, 4, i)).class_map)


def test_all_numbers_of_images_that_runs_may_take_are_warmed(gated: GatedSegmenter) -> None:
    gated.gate.set()
    with batching(gated, max_batch=6, powers_of_two=True) as batcher:
        batcher.warm([(8, 8)])
    assert sizes(gated) == [1, 1, 2, 2, 4, 4, 6, 6]


def test_only_images_of_one_padded_size_share_a_run_and_the_oldest_goes_first(gated: GatedSegmenter) -> None:
    with batching(gated) as batcher:
        held = hold(batcher, gated)
        images = [noise(8, 8), noise(4, 4), noise(7, 5), noise(3, 1), noise(8, 8)]  # padded to 8, 4, 8, 4, 8
        futures = [batcher.submit(image) for image in images]
        gated.gate.set()
        wait([held, *futures], 60)
    assert [[image.shape[:2] for image in batch] for batch in gated.batches[1:]] == [
        [(8, 8), (7, 5), (8, 8)],
        [(4, 4), (3, 1)],
    ]


def test_an_image_that_is_padded_already_is_answered_at_its_own_size(gated: GatedSegmenter) -> None:
    gated.gate.set()
    image = noise(7, 5)
    padded = np.pad(image, ((0, 1), (0, 3), (0, 0)), mode="edge")
    with batching(gated) as batcher:
        answer = batcher.submit(padded, (7, 5)).result(60).segmentation
    assert np.array_equal(answer.class_map, gated.segment(image).class_map)


def test_confidence_is_computed_for_those_who_asked_alone(gated: GatedSegmenter) -> None:
    with batching(gated) as batcher:
        held = hold(batcher, gated)
        asked = [batcher.submit(RED, confidence=i % 2 == 0) for i in range(4)]
        gated.gate.set()
        answers = [future.result(60) for future in asked]
        held.result(60)
    assert [answer.segmentation.confidence is None for answer in answers] == [False, True, False, True]
    assert sizes(gated) == [1, 2, 2]


def test_heatmaps_are_read_where_an_image_of_the_run_wants_them(gated: GatedSegmenter) -> None:
    with batching(gated) as batcher:
        held = hold(batcher, gated)
        asked = [batcher.submit(image, heatmap=wanted) for image, wanted in ((RED, False), (MAGENTA, True))]
        gated.gate.set()
        answers = [future.result(60).segmentation for future in asked]
        alone = batcher.submit(RED, heatmap=False).result(60).segmentation
        held.result(60)
    assert sizes(gated) == [1, 2, 1]
    for image, answer in zip((RED, MAGENTA), answers, strict=True):
        expected = gated.segment(image)
        assert np.array_equal(answer.heatmap, expected.heatmap)
        assert np.array_equal(answer.class_map, expected.class_map)
    assert alone.heatmap.shape == (len(gated.info.label_map), 0, 0)
    assert np.array_equal(alone.class_map, answers[0].class_map)


def test_a_batch_waits_for_more_images_no_longer_than_its_delay(gated: GatedSegmenter) -> None:
    gated.gate.set()
    with batching(gated, max_batch=3, delay_s=0.3) as batcher:
        batcher.submit(RED).result(60)  # now it knows its pace
        began = time.monotonic()
        assert batcher.submit(RED).result(60).batch_size == 1
        assert time.monotonic() - began >= 0.3
        wait([batcher.submit(RED) for _ in range(3)], 60)
    assert sizes(gated) == [1, 1, 3]


def test_a_full_batch_does_not_wait_nor_does_it_behind_a_lonely_image(tiny_model: Path) -> None:
    with batching(load(tiny_model, "cpu", threads=1), max_batch=2, delay_s=60) as batcher:
        for image in (RED, noise(40, 40)):
            batcher.submit(image).result(60)  # now it knows their pace
        lonely = batcher.submit(noise(40, 40))
        full = [batcher.submit(RED), batcher.submit(RED)]
        wait(full, 50)
        assert [future.done() for future in (*full, lonely)] == [True, True, False]


def test_a_lonely_image_waits_no_longer_than_its_deadline_allows(tiny_model: Path) -> None:
    with batching(load(tiny_model, "cpu", threads=1), max_batch=2, delay_s=60) as batcher:
        batcher.submit(RED).result(60)
        batcher.pace.add(RED.shape[0] * RED.shape[1], 1, 20.0)  # so that it is begun seconds before its deadline
        lonely = batcher.submit(RED, deadline=time.monotonic() + 10)
        assert lonely.result(50).batch_size == 1


@pytest.mark.parametrize("position", range(4))
def test_a_cancelled_image_is_not_run_and_takes_nothing_from_its_neighbours(
    gated: GatedSegmenter, position: int
) -> None:
    with batching(gated, max_batch=3) as batcher:
        held = hold(batcher, gated)
        images = [noise(4, 4, i) for i in range(4)]
        futures = [batcher.submit(image) for image in images]
        assert futures[position].cancel()
        gated.gate.set()
        answers = {i: future.result(60) for i, future in enumerate(futures) if i != position}
    assert held.done()
    assert sizes(gated) == [1, 3]
    for i, answer in answers.items():
        assert np.array_equal(answer.segmentation.class_map, gated.segment(images[i]).class_map)
    with pytest.raises(CancelledError):
        futures[position].result(60)


class Image(np.ndarray[Any, Any]):
    """An array that can be watched."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without the collector of cycles, whose turn may come after hundreds of images."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_cancelled_image_is_gone_at_once(gated: GatedSegmenter) -> None:
    with batching(gated) as batcher:
        hold(batcher, gated)
        image = noise(4, 4).view(Image)
        watched = weakref.ref(image)
        future = batcher.submit(image)
        del image
        assert watched() is not None
        future.cancel()
        gone = watched() is None
        gated.gate.set()
    assert gone


@pytest.mark.usefixtures("no_collector")
def test_image_and_answer_are_gone_as_soon_as_nobody_holds_them(tiny_model: Path) -> None:
    with batching(load(tiny_model, "cpu", threads=1)) as batcher:
        image = noise(4, 4).view(Image)
        future = batcher.submit(image)
        watched = [weakref.ref(image), weakref.ref(future.result(60))]
        del image, future
        batcher.submit(RED).result(60)  # the thread has let go of the last one
        assert [reference() for reference in watched] == [None, None]


@pytest.mark.usefixtures("no_collector")
def test_an_image_that_failed_is_gone_as_soon_as_nobody_holds_its_failure(tmp_path: Path) -> None:
    model = load(write_tiny_model(tmp_path / "m.onnx", fails_on_magenta=True), "cpu", threads=1, options=PROVED)
    with batching(model) as batcher:
        image = MAGENTA.copy().view(Image)
        watched = weakref.ref(image)
        future = batcher.submit(image)
        assert future.exception(60) is not None
        del image, future
        batcher.submit(RED).result(60)
        assert watched() is None


def test_an_image_cannot_be_cancelled_once_its_run_has_begun_and_does_no_harm(gated: GatedSegmenter) -> None:
    with batching(gated) as batcher:
        first = hold(batcher, gated)
        assert not first.cancel()
        gated.gate.set()
        assert first.result(60).batch_size == 1


def test_an_image_whose_deadline_passed_in_the_queue_is_not_run(gated: GatedSegmenter) -> None:
    with batching(gated) as batcher:
        held = hold(batcher, gated)
        late = batcher.submit(RED, deadline=time.monotonic() + 0.05)
        patient = batcher.submit(RED, deadline=time.monotonic() + 60)
        time.sleep(0.1)
        gated.gate.set()
        with pytest.raises(TooLateError, match="deadline passed while the request waited"):
            late.result(60)
        assert patient.result(60).batch_size == 1
        held.result(60)
    assert sizes(gated) == [1, 1]


def test_an_image_whose_deadline_passed_as_it_waited_for_memory_is_not_run(gated: GatedSegmenter) -> None:
    """The memory for runs is all models'."""
    memory = MemoryBudget(2**20)
    gated.gate.set()
    with batching(gated, memory) as batcher:
        memory.take(2**20)
        late = batcher.submit(RED, deadline=time.monotonic() + 0.05)
        time.sleep(0.2)
        memory.give_back(2**20)
        with pytest.raises(TooLateError, match="deadline passed while the request waited"):
            late.result(60)
        batcher.submit(RED).result(60)
    assert (sizes(gated), memory.taken) == ([1], 0)


@pytest.mark.parametrize("position", range(4))
def test_a_poisoned_image_fails_alone(tmp_path: Path, position: int) -> None:
    gated = GatedSegmenter(write_tiny_model(tmp_path / "m.onnx", fails_on_magenta=True), PROVED)
    with batching(gated, max_batch=4) as batcher:
        held = hold(batcher, gated)
        images = [noise(4, 4, i) for i in range(4)]
        images[position] = MAGENTA
        futures = [batcher.submit(image) for image in images]
        gated.gate.set()
        held.result(60)
        for i, future in enumerate(futures):
            if i == position:
                with pytest.raises(Exception, match="Reshape"):
                    future.result(60)
            else:
                assert np.array_equal(future.result(60).segmentation.class_map, gated.segment(images[i]).class_map)
        assert batcher.submit(RED).result(60).batch_size == 1  # and the model goes on


def test_closing_refuses_what_waits_and_finishes_what_runs(gated: GatedSegmenter) -> None:
    batcher = Batcher(gated, BatchingConfig(max_batch=2, max_queue=100), MEMORY, "test")
    held = hold(batcher, gated)
    waiting = [batcher.submit(RED) for _ in range(50)]
    waiting[7].cancel()
    closing = threading.Thread(target=batcher.close)
    closing.start()
    for i, future in enumerate(waiting):
        with pytest.raises(CancelledError if i == 7 else StoppingError):
            future.result(60)
    assert not held.done()
    gated.gate.set()
    assert held.result(60).batch_size == 1
    closing.join(60)
    assert not closing.is_alive()
    with pytest.raises(StoppingError):
        batcher.submit(RED)


def test_two_runners_run_side_by_side(gated: GatedSegmenter) -> None:
    with batching(gated, max_batch=1, runners=2) as batcher:
        futures = [batcher.submit(RED) for _ in range(3)]
        assert gated.begun.acquire(timeout=60)
        assert gated.begun.acquire(timeout=60)
        assert not gated.begun.acquire(timeout=0.1)
        gated.gate.set()
        wait(futures, 60)
    assert sizes(gated) == [1, 1, 1]


class SteppedSegmenter(GatedSegmenter):
    """Lets as many runs go on as it is told to, and shares its threads.

    Attributes:
        steps: Released for each run that may go on.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, SHARED)
        self.steps = threading.Semaphore(0)

    def wait(self) -> None:
        assert self.steps.acquire(timeout=60)


@pytest.fixture
def stepped(tiny_model: Path) -> SteppedSegmenter:
    return SteppedSegmenter(tiny_model)


def test_an_image_that_waits_alone_has_all_threads_and_those_that_wait_together_share_them(
    stepped: SteppedSegmenter,
) -> None:
    with batching(stepped, max_batch=1, runners=2) as batcher:
        futures = [hold(batcher, stepped)]
        futures += [batcher.submit(RED) for _ in range(3)]
        assert not stepped.begun.acquire(timeout=0.1)  # all threads are taken
        stepped.steps.release()
        assert stepped.begun.acquire(timeout=60)
        assert stepped.begun.acquire(timeout=60)
        assert stepped.ways == [False, True, True]
        assert not stepped.begun.acquire(timeout=0.1)
        stepped.steps.release()
        assert stepped.begun.acquire(timeout=60)  # beside the one that is left, whatever waits
        assert stepped.ways == [False, True, True, True]
        stepped.steps.release(2)
        wait(futures, 60)
        last = hold(batcher, stepped)
        assert stepped.ways[4:] == [False]
        stepped.steps.release()
        last.result(60)


def test_a_large_image_has_all_threads_and_is_not_overtaken(stepped: SteppedSegmenter) -> None:
    probe = stepped.engine.probe
    assert probe is not None
    memory = MemoryBudget(math.ceil(8 * 64 * probe.bytes_per_pixel))  # two of 8x8 beside each other take a quarter
    with batching(stepped, memory, max_batch=1, runners=2) as batcher:
        images = [noise(8, 8), noise(8, 8), noise(16, 8), noise(8, 8), noise(8, 8)]
        futures = [hold(batcher, stepped)] + [batcher.submit(image) for image in images]
        stepped.steps.release()
        for _ in range(2):
            assert stepped.begun.acquire(timeout=60)
        stepped.steps.release()
        assert not stepped.begun.acquire(timeout=0.1)  # the large one waits until it is alone
        stepped.steps.release()
        assert stepped.begun.acquire(timeout=60)
        assert not stepped.begun.acquire(timeout=0.1)
        stepped.steps.release(3)
        wait(futures, 60)
    assert [batch[0].shape[0] for batch in stepped.batches] == [4, 8, 8, 16, 8, 8]
    assert stepped.ways[:5] == [False, True, True, False, True]


def test_a_run_that_had_all_threads_counts_as_if_it_had_shared_them(stepped: SteppedSegmenter) -> None:
    with batching(stepped, max_batch=1, runners=2) as batcher:
        stepped.steps.release(1)
        alone = batcher.submit(RED).result(60)
        assert batcher.pace.seconds(64) == pytest.approx(2 * alone.infer_s)


def test_every_way_to_run_is_warmed(stepped: SteppedSegmenter) -> None:
    stepped.steps.release(8)
    with batching(stepped, max_batch=3, runners=2) as batcher:
        batcher.warm([(8, 8)])
    found = [(len(batch), beside) for batch, beside in zip(stepped.batches, stepped.ways, strict=True)]
    assert found == [(count, beside) for count in (1, 3) for beside in (False, True) for _ in range(2)]


def test_a_batch_is_no_larger_than_the_memory_for_runs(gated: GatedSegmenter) -> None:
    assert gated.engine.probe is not None
    memory = MemoryBudget(math.ceil(2.5 * 64 * gated.engine.probe.bytes_per_pixel))
    with batching(gated, memory) as batcher:
        held = hold(batcher, gated)
        futures = [batcher.submit(noise(8, 8, i)) for i in range(5)]
        gated.gate.set()
        wait([held, *futures], 60)
    assert sizes(gated) == [1, 2, 2, 1]
    assert memory.taken == 0


def test_a_batch_that_fills_the_memory_for_runs_to_the_last_byte_runs(gated: GatedSegmenter) -> None:
    """In floats three times 320 pixels of 32.2 bytes are more than the 30,912 bytes of which they are a third each."""
    assert gated.engine.probe is not None
    gated.engine.probe = replace(gated.engine.probe, bytes_per_pixel=32.2)
    with batching(gated, MemoryBudget(30_912)) as batcher:
        held = hold(batcher, gated)
        futures = [batcher.submit(noise(8, 40, i)) for i in range(3)]
        gated.gate.set()
        wait([held, *futures], 10)
        assert all(future.done() for future in futures)
    assert sizes(gated) == [1, 3]


def test_an_image_beyond_the_memory_for_runs_is_refused_and_the_next_is_answered(gated: GatedSegmenter) -> None:
    assert gated.engine.probe is not None
    gated.gate.set()
    with batching(gated, MemoryBudget(math.ceil(64 * gated.engine.probe.bytes_per_pixel))) as batcher:
        with pytest.raises(UsageError, match=r"an image of 8x9 takes \d+ bytes of the \d+ there are for runs"):
            batcher.submit(noise(8, 9)).result(10)
        assert batcher.submit(noise(8, 8)).result(10).batch_size == 1


def test_the_first_run_of_a_size_that_is_warmed_does_not_tell_the_pace(tiny_model: Path) -> None:
    class ColdSegmenter(GatedSegmenter):
        def wait(self) -> None:
            if len(self.batches) == 1:
                time.sleep(0.5)

    cold = ColdSegmenter(tiny_model, PROVED)
    with batching(cold, max_batch=4) as batcher:
        batcher.warm([(8, 8)])
        assert sizes(cold) == [1, 1, 4, 4]
        assert 0 < batcher.pace.cautious_seconds(64) < 0.5


def test_a_size_to_warm_that_does_not_fit_is_told(tiny_model: Path) -> None:
    with (
        batching(load(tiny_model, "cpu", options=PROVED), MemoryBudget(100_000)) as batcher,
        pytest.raises(UsageError, match=r"images of 99999x99999 cannot be run to warm the model: one takes \d+ bytes"),
    ):
        batcher.warm([(8, 8), (99_999, 99_999)])


def test_sizes_that_were_not_declared_are_counted_when_they_first_come(tiny_model: Path) -> None:
    with batching(load(tiny_model, "cpu", options=PROVED)) as batcher:
        batcher.warm([(8, 8), (480, 640)])
        assert batcher.pace.knows(64)
        assert batcher.pace.knows(480 * 640)
        for height, width in ((8, 8), (7, 6), (480, 640)):  # 7 x 6 is padded to 8 x 8
            batcher.submit(noise(height, width)).result(60)
        assert batcher.cold_sizes == 0
        for _ in range(2):
            batcher.submit(noise(9, 9)).result(60)
        assert (batcher.cold_sizes, batcher.warm_sizes) == (1, ((8, 8), (480, 640)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"max_batch": 0}, "largest batch is 0"),
        ({"max_queue": 0}, "largest queue is 0"),
        ({"runners": 0}, "number of runners is 0"),
        ({"max_delay_s": -1.0}, "delay is -1 s"),
        ({"max_delay_s": math.nan}, "delay is nan s"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BatchingConfig(**config)  # type: ignore[arg-type]


@settings(max_examples=10)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**31), st.integers(1, 4))
def test_a_batch_of_8_and_a_batch_of_1_have_the_same_bytes(height: int, width: int, seed: int, threads: int) -> None:
    segmenter = load(TRAINED, "cpu", threads=threads)
    images = [noise(height, width, seed + i) for i in range(8)]
    together = segmenter.segment_batch(images, confidence=True)
    for image, answer in zip(images, together, strict=True):
        alone = segmenter.segment(image, confidence=True)
        for name in ("class_map", "heatmap", "confidence"):
            assert getattr(answer, name).tobytes() == getattr(alone, name).tobytes()


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_answers_under_load_are_those_of_each_image_alone(
    requests: list[tuple[int, int, bool]], max_batch: int, runners: int, threads: int
) -> None:
    segmenter = Segmenter(Engine(TRAINED, "cpu", replace(PROVED, threads=threads, runs=runners)))
    images = [noise(height, width, i) for i, (height, width, _) in enumerate(requests)]
    with batching(segmenter, max_batch=max_batch, runners=runners) as batcher:
        futures = [
            batcher.submit(image, confidence=asked) for image, (_, _, asked) in zip(images, requests, strict=True)
        ]
        answers = [future.result(60).segmentation for future in futures]
    for image, answer, (_, _, asked) in zip(images, answers, requests, strict=True):
        alone = segmenter.segment(image, confidence=asked)
        assert np.array_equal(answer.class_map, alone.class_map)
        assert np.array_equal(answer.heatmap, alone.heatmap)
        assert (answer.confidence is None) is not asked
        assert answer.confidence is None or np.array_equal(answer.confidence, alone.confidence)

import gc
import threading
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import pytest

from serving.relay import Relay


def done(result: object) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(result)
    return future


@pytest.fixture
def threads() -> Any:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def test_each_stage_gets_what_the_one_before_gave(threads: ThreadPoolExecutor) -> None:
    first: Relay[int] = Relay(threads.submit(lambda: 2), lambda two: threads.submit(lambda: two + 3))
    relay: Relay[str] = Relay(first, lambda five: done(f"{five}"))
    assert relay.result(60) == "5"


@pytest.mark.parametrize("at", range(3))
def test_a_failure_ends_it_and_nothing_is_begun_after_it(threads: ThreadPoolExecutor, at: int) -> None:
    begun = []

    def stage(number: int) -> "Future[Any]":
        begun.append(number)
        return threads.submit(lambda: 1 / (number - at))

    relay: Relay[float] = Relay(Relay(stage(0), lambda _: stage(1)), lambda _: stage(2))
    with pytest.raises(ZeroDivisionError):
        relay.result(60)
    assert begun == list(range(at + 1))


def test_a_stage_that_cannot_begin_has_failed(threads: ThreadPoolExecutor) -> None:
    def refuse(_: object) -> "Future[Any]":
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        Relay(Relay(threads.submit(lambda: 1), refuse), lambda _: done(2)).result(60)


def test_cancelled_it_takes_the_stage_that_waits_from_its_queue() -> None:
    waiting: Future[Any] = Future()
    relay: Relay[Any] = Relay(Relay(done(1), lambda _: waiting), lambda _: done(3))
    assert relay.cancel()
    assert relay.cancelled()
    assert waiting.cancelled()
    with pytest.raises(CancelledError):
        relay.result(0)


def test_cancelled_while_a_stage_runs_it_is_done_when_that_has_ended(threads: ThreadPoolExecutor) -> None:
    running, go_on, begun = threading.Event(), threading.Event(), []

    def work() -> int:
        running.set()
        go_on.wait(60)
        return 1

    relay: Relay[Any] = Relay(threads.submit(work), lambda _: begun.append(1) or done(2))
    running.wait(60)
    assert not relay.cancel()
    assert not relay.done()
    go_on.set()
    with pytest.raises(CancelledError):
        relay.result(60)
    assert not begun


def test_a_stage_that_was_cancelled_cancels_it() -> None:
    first: Future[Any] = Future()
    relay: Relay[Any] = Relay(first, lambda _: done(2))
    first.cancel()
    assert relay.cancelled()


@pytest.mark.parametrize("fails", [False, True])
def test_what_stages_worked_on_is_let_go_without_a_collection(*, fails: bool) -> None:
    class Image:
        pass

    image = Image()
    alive = weakref.ref(image)
    first: Future[Any] = Future()
    inner: Relay[Any] = Relay(first, lambda given: done(1 / 0) if fails else done(given))
    relay: Relay[Any] = Relay(inner, lambda _: done(3))
    gc.disable()
    try:
        first.set_result(image)
        assert relay.done()
        del first, image, inner, relay
        assert alive() is None
    finally:
        gc.enable()

"""Decode, segment, write: three stages in threads of their own, each image in its turn.

Every stage takes the images in their order, so the oldest image under way is always the next to get what it waits for,
be it a thread, memory or the engine, and nothing can wait in a circle. What is under way is bounded, in images and in
bytes, so memory does not grow with the list.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Decoded = TypeVar("Decoded")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Widths:
    """How much of a job is under way at a time.

    Attributes:
        decoders: Threads that decode.
        segmenters: Threads that segment: a batch each, or a request.
        writers: Threads that write.
        batch: Most images that are segmented together.
    """

    decoders: int
    segmenters: int
    writers: int
    batch: int = 1

    @property
    def under_way(self) -> int:
        """Images from the start of their decoding to the end of their writing."""
        return 2 * (self.decoders + self.writers) + self.segmenters + 2 * self.batch


@dataclass(eq=False)
class _Job(Generic[Item, Decoded, Answer]):
    item: Item
    decoded: "Future[Decoded]"
    answer: "Future[Answer]" = field(default_factory=Future)


class Pipeline(Generic[Item, Decoded, Answer, Result]):
    """Takes items through three functions; the first error that any of them raises ends the job.

    Args:
        decode: Prepares an item, in one of the decoders' threads.
        kind: Tells which prepared items may be segmented together: those of equal kinds.
        segment: Answers items of one kind, an answer each.
        write: Makes the result of an item, its preparation and its answer.
        widths: How much is under way.
    """

    def __init__(
        self,
        decode: Callable[[Item], Decoded],
        kind: Callable[[Decoded], object],
        segment: Callable[[Sequence[Decoded]], Sequence[Answer]],
        write: Callable[[Item, Decoded, Answer], Result],
        widths: Widths,
    ) -> None:
        self._decode, self._kind, self._segment, self._write, self._widths = decode, kind, segment, write, widths
        self._decoders = ThreadPoolExecutor(widths.decoders, "fcnseg-decode")
        self._segmenters = ThreadPoolExecutor(widths.segmenters, "fcnseg-segment")
        self._writers = ThreadPoolExecutor(widths.writers, "fcnseg-write")
        self._under_way: deque[Future[Result]] = deque()
        self._unanswered: deque[_Job[Item, Decoded, Answer]] = deque()
        self._lock = threading.Lock()

    def results(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield the result of each item, in their order.

        Raises:
            Exception: Whatever a function raised first, in the items' order.
        """
        waiting = iter(items)
        while True:
            while len(self._under_way) < self._widths.under_way and (item := next(waiting, None)) is not None:
                self._start(item)
            if not self._under_way:
                return
            wait([self._under_way[0]])  # left in its place meanwhile, for `finish` where the wait is interrupted
            yield self._under_way.popleft().result()

    def finish(self) -> Iterator[Result]:
        """Yield what is under way, and start nothing more; items that failed are left out."""
        while self._under_way:
            result = self._under_way.popleft()
            if result.exception() is None:
                yield result.result()

    def close(self) -> None:
        """Wait for what has begun, and drop the rest."""
        for pool in (self._decoders, self._segmenters, self._writers):
            pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            dropped, self._unanswered = list(self._unanswered), deque()
        for job in dropped:
            job.answer.cancel()
        for pool in (self._decoders, self._segmenters, self._writers):
            pool.shutdown()

    def _start(self, item: Item) -> None:
        job: _Job[Item, Decoded, Answer] = _Job(item, self._decoders.submit(self._decode, item))
        with self._lock:
            self._unanswered.append(job)
        self._segmenters.submit(self._answer_next)
        self._under_way.append(self._writers.submit(self._write_one, job))

    def _answer_next(self) -> None:
        """Answer the oldest item that has no answer, and with it those behind it that are ready and of its kind."""
        with self._lock:
            if not self._unanswered:  # answered together with an earlier one
                return
            first = self._unanswered.popleft()
        batch = [first]
        try:
            kind = self._kind(first.decoded.result())
            with self._lock:
                while (
                    len(batch) < self._widths.batch
                    and self._unanswered
                    and _is_ready(self._unanswered[0].decoded)
                    and self._kind(self._unanswered[0].decoded.result()) == kind
                ):
                    batch.append(self._unanswered.popleft())
            answers = self._segment([job.decoded.result() for job in batch])
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            for job in batch:
                job.answer.set_exception(error)
            return
        for job, answer in zip(batch, answers, strict=True):
            job.answer.set_result(answer)

    def _write_one(self, job: _Job[Item, Decoded, Answer]) -> Result:
        return self._write(job.item, job.decoded.result(), job.answer.result())


def _is_ready(future: "Future[Decoded]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None

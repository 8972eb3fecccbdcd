"""Decode, segment, write: a pipeline of three stages, each with its own threads.

Every stage takes the images in order, so the oldest image in progress is always the next to get the resource that it
waits for (a thread, memory or the engine), and a deadlock is impossible. The images in progress are bounded, in number
and in bytes, so memory does not grow with the list.
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
    """The widths of the pipeline's stages.

    Attributes:
        decoders: Threads that decode.
        segmenters: Threads that segment, each a batch or a request at a time.
        writers: Threads that write.
        batch: Most images that are segmented together.
    """

    decoders: int
    segmenters: int
    writers: int
    batch: int = 1

    @property
    def under_way(self) -> int:
        """Most images in progress, from the start of decoding to the end of writing."""
        return 2 * (self.decoders + self.writers) + self.segmenters + 2 * self.batch


@dataclass(eq=False)
class _Job(Generic[Item, Decoded, Answer]):
    item: Item
    decoded: "Future[Decoded]"
    answer: "Future[Answer]" = field(default_factory=Future)


class Pipeline(Generic[Item, Decoded, Answer, Result]):
    """Passes items through three functions; the first error that any of them raises ends the job.

    Args:
        decode: Prepares an item, in one of the decoders' threads.
        kind: Returns a key of a prepared item; items with equal keys may be segmented together.
        segment: Returns an answer for each of several prepared items of one kind.
        write: Makes the result from an item, the prepared item and its answer.
        widths: Threads of each stage, and the batch size.
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
        """Yield the result of each item, in the items' order.

        Raises:
            Exception: The first error that a function raised, in the items' order.
        """
        waiting = iter(items)
        while True:
            while len(self._under_way) < self._widths.under_way and (item := next(waiting, None)) is not None:
                self._start(item)
            if not self._under_way:
                return
            wait([self._under_way[0]])  # not removed yet, so that `finish` finds it if this wait is interrupted
            yield self._under_way.popleft().result()

    def finish(self) -> Iterator[Result]:
        """Yield the results of items in progress, and start no others; items that failed are left out."""
        while self._under_way:
            result = self._under_way.popleft()
            if result.exception() is None:
                yield result.result()

    def close(self) -> None:
        """Wait for functions that are running, and drop the remaining items."""
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
        """Segment the oldest item without an answer, together with the next ones that are ready and of its kind."""
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
        except BaseException as error:  # noqa: BLE001 - raised again when the result is read
            for job in batch:
                job.answer.set_exception(error)
            return
        for job, answer in zip(batch, answers, strict=True):
            job.answer.set_result(answer)

    def _write_one(self, job: _Job[Item, Decoded, Answer]) -> Result:
        return self._write(job.item, job.decoded.result(), job.answer.result())


def _is_ready(future: "Future[Decoded]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None

"""Admission control of one model: only requests that can be answered in time and in bounded memory are admitted."""

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from serving.batcher import Batcher
from serving.errors import OverloadedError, Reason
from serving.memory import MemoryBudget
from serving.pace import PaceBySize

_SHORTEST_RETRY_S, _MEMORY_RETRY_S, _LONGEST_RETRY_S = 0.02, 0.2, 10.0
_SPREAD = 1.5


class Admission:
    """Admits requests while the queue has room, and there is memory for their images and time for their answers.

    Args:
        batcher: The model's batcher.
        memory: What the images of all models' requests may take together.
    """

    def __init__(self, batcher: Batcher, memory: MemoryBudget) -> None:
        self.batcher = batcher
        self.memory = memory
        self._lock = threading.RLock()
        self._count = 0
        # How many images in progress have the same padded pixels and the same extras in their answers.
        self._kinds: Counter[tuple[int, frozenset[str]]] = Counter()
        # Time from the end of a run to the end of writing its answer, by the extras in the answer.
        self._finishing: defaultdict[frozenset[str], PaceBySize] = defaultdict(PaceBySize)

    @property
    def pending(self) -> int:
        """Images in progress, from their arrival to the end of their run."""
        return self._count

    def enter(self) -> "Ticket":
        """Admit a request whose image has not been examined yet.

        Raises:
            OverloadedError: The queue is full.
        """
        return self.enter_together([0])[0]

    def enter_together(self, byte_counts: Sequence[int]) -> "list[Ticket]":
        """Admit the images of one request together, each with its memory: all of them or none.

        Admitted one by one, several requests that each have only some of their images admitted could deadlock.

        Raises:
            OverloadedError: The queue has no room for all of them, or there is not enough memory now.
        """
        with self._lock:
            if self._count + len(byte_counts) > self.batcher.config.max_queue:
                more = (
                    f"there is no room for {len(byte_counts)} more"
                    if len(byte_counts) > 1
                    else "the model's queue is full"
                )
                raise OverloadedError(
                    f"{self._count} images wait or run, and {more}; ask again later",
                    self.retry_after_s(),
                    Reason.QUEUE_FULL,
                )
            if needed := sum(byte_counts):
                self.take_memory(needed)
            self._count += len(byte_counts)
        return [Ticket(self, byte_count) for byte_count in byte_counts]

    def take_memory(self, byte_count: int) -> None:
        """Take memory for images, to be given back.

        Raises:
            OverloadedError: There is not enough now.
        """
        if not self.memory.try_take(byte_count):
            raise OverloadedError(
                f"the memory for images is full: {self.memory.taken} of {self.memory.total} bytes are taken, and this"
                f" request needs {byte_count}; ask again later",
                self.retry_after_s(_MEMORY_RETRY_S),  # it may be held by images of another model
                Reason.MEMORY,
            )

    def retry_after_s(self, least: float = _SHORTEST_RETRY_S) -> float:
        """Return after how many seconds to retry: when half of the images in progress will be done, at least `least`.

        Random jitter adds up to half as much, so that clients that are refused together do not retry together.
        """
        with self._lock:
            ahead = sum(self.batcher.pace.seconds(size) * count for (size, _), count in self._kinds.items())
        half = max(least, ahead / self.batcher.config.runners / 2)
        return min(_LONGEST_RETRY_S, half * random.uniform(1, _SPREAD))  # noqa: S311 - it keeps no secret

    def schedule(self, pixels: int, patience_s: float | None, extras: frozenset[str]) -> None:
        """Count an image of so many padded pixels, for an answer with these extras, as in progress.

        Raises:
            OverloadedError: Its answer is expected to take longer than `patience_s`.
        """
        with self._lock:
            seconds, config = self.batcher.pace.cautious_seconds, self.batcher.config
            ahead = sum(seconds(size) * count for (size, _), count in self._kinds.items()) / config.runners
            # Its batch may hold all images in progress. An idle model admits any image, or it would learn no pace.
            own = seconds(pixels) * min(config.max_batch, self._count)
            expected = config.max_delay_s + ahead + own
            # Writing counts only while an answer with the same extras is in progress. Otherwise a single slow answer
            # would keep out all later ones, whose times would correct the estimate.
            if any(others == extras for _, others in self._kinds):
                expected += self._finishing[extras].cautious_seconds(pixels)
            if self._kinds and patience_s is not None and expected > patience_s:
                raise OverloadedError(
                    f"the answer would take about {expected * 1000:.0f} ms and the deadline leaves"
                    f" {max(0.0, patience_s) * 1000:.0f} ms; ask again later or allow more time",
                    self.retry_after_s(),
                    Reason.DEADLINE,
                )
            self._kinds[pixels, extras] += 1

    def end_run(self, pixels: int, extras: frozenset[str]) -> None:
        """Count an image of so many padded pixels, for an answer with these extras, as no longer in progress."""
        with self._lock:
            self._count -= 1
            self._kinds -= Counter({(pixels, extras): 1})

    def finished(self, pixels: int, seconds: float, extras: frozenset[str]) -> None:
        """Learn how long an answer with these extras, to an image of so many padded pixels, took after its run."""
        with self._lock:
            self._finishing[extras].add(pixels, 1, seconds)


class Ticket:
    """An admitted image, from its arrival to the end of its answer; it must be closed.

    Args:
        admission: The admission control that issued it.
        byte_count: Bytes of memory that are already taken for it.

    Attributes:
        work: The work in a thread that holds the image until it is done; None if there is none.
    """

    def __init__(self, admission: Admission, byte_count: int = 0) -> None:
        self.work: Future[Any] | None = None
        self._admission = admission
        self._pixels = 0
        self._extras: frozenset[str] = frozenset()
        self._bytes = byte_count
        self._ran_at: float | None = None
        self._closed = False

    def reserve(
        self,
        height: int,
        width: int,
        byte_count: int,
        patience_s: float | None,
        extras: frozenset[str] = frozenset(),
    ) -> None:
        """Reserve memory and time for an image whose size is known now.

        Args:
            height: Its rows.
            width: Its columns.
            byte_count: Bytes that the request and its answer hold until the end.
            patience_s: Seconds until the answer is useless; None for no limit.
            extras: Names of what the answer holds besides the class map; those with the same extras are written about
                equally fast.

        Raises:
            OverloadedError: There is no memory for it now, or the answer would come too late.
        """
        admission = self._admission
        admission.take_memory(byte_count)
        self._bytes += byte_count
        pixels = admission.batcher.padded_pixels(height, width)
        admission.schedule(pixels, patience_s, extras)
        self._pixels, self._extras = pixels, extras

    def ran(self) -> None:
        """Record that the image's run has ended: it no longer counts as in progress, though its answer is unwritten."""
        if self._ran_at is None:
            self._ran_at = time.monotonic()
            self._admission.end_run(self._pixels, self._extras)

    def wrote(self) -> None:
        """Record that the answer is written; the time it took improves the estimate for similar answers."""
        if self._ran_at is not None:
            self._admission.finished(self._pixels, time.monotonic() - self._ran_at, self._extras)

    def close_when_done(self) -> None:
        """Close it as soon as its work is done."""
        if self.work is None:
            self.close()
        else:
            self.work.add_done_callback(lambda _: self.close())

    def close(self) -> None:
        """Give back what was reserved; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self.work = None  # its exception refers to frames that hold the ticket
        self.ran()
        self._admission.memory.give_back(self._bytes)

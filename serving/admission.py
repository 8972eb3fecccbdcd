"""One model's door: only requests that can be answered in time, and in bounded memory, are let in."""

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
    """Lets requests in while there are few enough, memory for their images, and time for their answers.

    Args:
        batcher: The model's batcher.
        memory: What the images of all models' requests may take together.
    """

    def __init__(self, batcher: Batcher, memory: MemoryBudget) -> None:
        self.batcher = batcher
        self.memory = memory
        self._lock = threading.RLock()
        self._count = 0
        # Padded pixels of the images under way with their answers' extras, and how many have the same.
        self._kinds: Counter[tuple[int, frozenset[str]]] = Counter()
        # From the end of a run to the end of its answer, by what that holds beside the class map.
        self._finishing: defaultdict[frozenset[str], PaceBySize] = defaultdict(PaceBySize)

    @property
    def pending(self) -> int:
        """Images under way, from their arrival to the end of their run."""
        return self._count

    def enter(self) -> "Ticket":
        """Let a request in whose image has not been looked at.

        Raises:
            OverloadedError: There are as many as there may be.
        """
        return self.enter_together([0])[0]

    def enter_together(self, byte_counts: Sequence[int]) -> "list[Ticket]":
        """Let images in that are asked for together, each with so much memory: all of them or none.

        If they were let in one by one, requests with some of their images in could wait for each other for ever.

        Raises:
            OverloadedError: There are as many as there may be with them, or there is no memory for them now.
        """
        with self._lock:
            if self._count + len(byte_counts) > self.batcher.config.max_queue:
                too_many = f" and {len(byte_counts)} more are too many" if len(byte_counts) > 1 else ""
                raise OverloadedError(
                    f"{self._count} images are under way{too_many or ', as many as there may be'}; ask again later",
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
            OverloadedError: It is not there now.
        """
        if not self.memory.try_take(byte_count):
            raise OverloadedError(
                f"images under way hold {self.memory.taken} of {self.memory.total} bytes and this one needs"
                f" {byte_count}; ask again later",
                self.retry_after_s(_MEMORY_RETRY_S),  # they may be another model's
                Reason.MEMORY,
            )

    def retry_after_s(self, least: float = _SHORTEST_RETRY_S) -> float:
        """Return when to ask again, in seconds: when half of what is under way will be done, and at least `least`.

        Up to half as much is added at random, so that clients that are refused together do not come back together.
        """
        with self._lock:
            ahead = sum(self.batcher.pace.seconds(size) * count for (size, _), count in self._kinds.items())
        half = max(least, ahead / self.batcher.config.runners / 2)
        return min(_LONGEST_RETRY_S, half * random.uniform(1, _SPREAD))  # noqa: S311 - it keeps no secret

    def schedule(self, pixels: int, patience_s: float | None, extras: frozenset[str]) -> None:
        """Count an image of so many padded pixels, for an answer with some extras, as under way.

        Raises:
            OverloadedError: Its answer would come after its patience.
        """
        with self._lock:
            seconds, config = self.batcher.pace.cautious_seconds, self.batcher.config
            ahead = sum(seconds(size) * count for (size, _), count in self._kinds.items()) / config.runners
            # Its batch may be as large as what waits; an idle model takes whatever comes, or it would never learn.
            own = seconds(pixels) * min(config.max_batch, self._count)
            expected = config.max_delay_s + ahead + own
            # Writing counts only while an answer with the same extras is under way. Else one that took long would keep
            # out all others, whose times correct the estimate.
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
        """Count an image of so many padded pixels, for an answer with some extras, as under way no more."""
        with self._lock:
            self._count -= 1
            self._kinds -= Counter({(pixels, extras): 1})

    def finished(self, pixels: int, seconds: float, extras: frozenset[str]) -> None:
        """Take in how long an answer with some extras, to an image of so many padded pixels, took after its run."""
        with self._lock:
            self._finishing[extras].add(pixels, 1, seconds)


class Ticket:
    """An image that was let in, from its arrival to the end of its answer; to be closed.

    Args:
        admission: What let the request in.
        byte_count: The memory that was taken for it.

    Attributes:
        work: What is done for it in a thread, which holds the image until it is done.
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
            byte_count: What the request and its answer hold until the end.
            patience_s: Seconds until the answer is of no use; None for no limit.
            extras: What the answer holds beside the class map: those with the same take about as long to write.

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
        """Note that the image's run has ended: it is under way no more, though its answer is not written."""
        if self._ran_at is None:
            self._ran_at = time.monotonic()
            self._admission.end_run(self._pixels, self._extras)

    def wrote(self) -> None:
        """Note that the answer is written, and took as long as others like it may."""
        if self._ran_at is not None:
            self._admission.finished(self._pixels, time.monotonic() - self._ran_at, self._extras)

    def close_when_done(self) -> None:
        """Close it as soon as nothing is done for it any more."""
        if self.work is None:
            self.close()
        else:
            self.work.add_done_callback(lambda _: self.close())

    def close(self) -> None:
        """Give back what was reserved; more than once does no harm."""
        if self._closed:
            return
        self._closed = True
        self.work = None  # its failure refers to frames that hold the ticket
        self.ran()
        self._admission.memory.give_back(self._bytes)

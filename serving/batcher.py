"""Greedy batching: a model's worker threads, as soon as they are free, run waiting images of one padded size together.

On the CPU a run has all cores while nothing else waits, for the lowest latency. While more images wait, several runs go
on side by side, each with its share of the cores, for the highest throughput: the threads of a run wait for each other
at every layer, and for cores that decode and encode, and with several runs less time is lost to that.

An answer does not depend on the batch it was computed in: the geometry is that of one image, and on the CPU the bytes
are the same. Each job has its own future: if its caller goes away while it waits, it is not run, and the other jobs of
the batch are not affected.
"""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import DeviceError, FcnsegError, UsageError, one_line
from fcnseg.segmenter import Segmenter
from fcnseg.types import Segmentation
from serving.errors import StoppingError, TooLateError
from serving.last_waiter_first import LastWaiterFirst
from serving.memory import MemoryBudget
from serving.pace import PaceBySize

_LONGEST_DELAY_S = 60.0
# Safety margin before an image's deadline when it waits for others: in seconds, or as a share of its time if larger.
_HAND_OVER_S, _HAND_OVER_SHARE = 0.01, 0.1
_LONGEST_REASON = 300
_MOST_SIZES_REMEMBERED = 10_000
# Largest share of the memory for all runs that go on side by side: their session keeps the memory of its largest runs.
_SHARE_BESIDE = 0.25


@dataclass(frozen=True)
class BatchingConfig:
    """How requests share runs.

    Attributes:
        max_batch: Most images per run.
        max_delay_s: How long an idle model waits for more images of one padded size, in seconds; less if a deadline
            would pass.
        max_queue: Most images in progress at a time, from their arrival to the end of their run.
        runners: Concurrent runs. On the CPU they divide the cores (`EngineOptions.runs`), all of which an image that
            waits alone gets; on CUDA one copies while another computes.
        powers_of_two: Whether a batch that is not full is cut down to a power of two: CUDA prepares every batch size
            anew.
    """

    max_batch: int = 8
    max_delay_s: float = 0.0
    max_queue: int = 64
    runners: int = 1
    powers_of_two: bool = False

    def __post_init__(self) -> None:
        for name, value in (("batch", self.max_batch), ("queue", self.max_queue), ("number of runners", self.runners)):
            if value < 1:
                raise UsageError(f"the largest {name} is {value}; it must be at least 1")
        if not 0 <= self.max_delay_s <= _LONGEST_DELAY_S:
            raise UsageError(f"the delay is {self.max_delay_s:g} s; it must be from 0 to {_LONGEST_DELAY_S:g}")


DEFAULT_BATCHING = BatchingConfig()


@dataclass(frozen=True, eq=False)
class Executed:
    """An answer and what it took.

    Attributes:
        segmentation: The answer.
        queue_s: Seconds from submission to the start of the run.
        infer_s: Seconds of the run.
        batch_size: Images in the run.
    """

    segmentation: Segmentation
    queue_s: float
    infer_s: float
    batch_size: int


@dataclass(eq=False)
class _Job:
    image: NDArray[np.uint8]
    size: tuple[int, int]
    confidence: bool
    heatmap: bool
    padded: tuple[int, int]
    deadline: float
    submitted: float = field(default_factory=time.monotonic)
    future: Future[Executed] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[tuple[int, int], bool]:
        """Jobs of one kind can share a run."""
        return self.padded, self.confidence

    @property
    def latest(self) -> float:
        """Time on the monotonic clock at which its run must have ended, so that the answer is in time."""
        if math.isinf(self.deadline):
            return self.deadline
        return self.deadline - max(_HAND_OVER_S, (self.deadline - self.submitted) * _HAND_OVER_SHARE)

    @property
    def pixels(self) -> int:
        return self.padded[0] * self.padded[1]


class Batcher:
    """Runs the inferences of one model in worker threads of its own.

    Args:
        segmenter: The model.
        config: How requests share runs.
        memory: The memory budget for the runs of all models; a run takes `bytes_per_pixel` for each padded pixel, and
            batches are kept small enough for the whole budget.
        name: Names the threads, for logs and debuggers.
        observe: Called after every run with its images and seconds, in the thread that ran it.

    Attributes:
        memory: The memory budget for runs.
        config: How requests share runs.
        pace: How long images take in its runs, by their padded pixels.
        warm_sizes: (height, width) of the images that were run before serving.
        cold_sizes: How many other padded sizes have come since.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        config: BatchingConfig,
        memory: MemoryBudget,
        name: str,
        observe: Callable[[int, float], None] = lambda _size, _seconds: None,
    ) -> None:
        self._segmenter = segmenter
        self.config = config
        self.memory = memory
        self._observe = observe
        self._waiting: list[_Job] = []
        self._changed = LastWaiterFirst()
        self._closing = False
        self._running = 0
        self._beside = False  # whether the current runs go on side by side; always False with one session
        self.pace = PaceBySize()
        self.warm_sizes: tuple[tuple[int, int], ...] = ()
        self.cold_sizes = 0
        self._kinds_seen: set[object] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"infer-{name}-{i}", daemon=True) for i in range(config.runners)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def bytes_per_pixel(self) -> float:
        """Working memory of a run for each padded pixel, measured when the model was opened; 0 where it was not."""
        probe = self._segmenter.engine.probe
        return probe.bytes_per_pixel if probe else 0.0

    def padded_pixels(self, height: int, width: int) -> int:
        """Return the pixels of the padded image that the net sees."""
        padded_height, padded_width = self._segmenter.info.geometry.padded(height, width)
        return padded_height * padded_width

    def run_bytes(self, height: int, width: int) -> int:
        """Return the working memory that an image takes in a run, in bytes."""
        return self._bytes_of(self.padded_pixels(height, width))

    def warm(self, sizes: Sequence[tuple[int, int]], should_stop: Callable[[], bool] = lambda: False) -> None:
        """Warm the model up: run it on images of these (height, width), alone and in a full batch.

        Args:
            sizes: The sizes.
            should_stop: Called before each run; if it returns True, or the model is being closed, warming ends.

        Raises:
            UsageError: An image of such a size does not fit into the memory for runs.
            DeviceError: The model cannot be run on them.
        """
        for height, width in sizes:
            if self.run_bytes(height, width) > self.memory.total:
                raise UsageError(
                    f"images of {height}x{width} cannot be run to warm the model: one takes"
                    f" {self.run_bytes(height, width)} bytes of the {self.memory.total} there are for runs; warm a"
                    " smaller size, or allow more memory"
                )
            image, pixels = np.zeros((height, width, 3), np.uint8), self.padded_pixels(height, width)
            ways = (False, True) if self._segmenter.engine.shares_threads else (False,)
            most = self._largest_batch(pixels)
            waiting = range(1, most + 1) if self.config.powers_of_two else (1, most)
            counts = {self._count(images, most) for images in waiting}
            for count, beside in itertools.product(sorted(counts), ways):
                if beside and not self._fits_beside(count * pixels):
                    continue
                for first in (True, False):  # the first run prepares, the second is timed
                    if self._closing or should_stop():
                        return
                    with self._room(count, pixels):
                        seconds = self._warm_by(image, count, beside=beside)
                    if not first:
                        self._learn(pixels, count, seconds, beside=beside)
            self._kinds_seen |= {self._padded(image), (self._padded(image), False)}
        self.warm_sizes = tuple(sizes)

    def _warm_by(self, image: NDArray[np.uint8], count: int, *, beside: bool) -> float:
        began = time.monotonic()
        try:
            self._segmenter.segment_prepared([image] * count, [image.shape[:2]] * count, beside=beside)
        except FcnsegError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            height, width, _ = image.shape
            reason = one_line(error, _LONGEST_REASON)
            raise DeviceError(
                f"device {self._segmenter.device} cannot run the model on {count} images of {height}x{width}: {reason};"
                " warm another size or a smaller batch, or export the model again"
            ) from error
        return time.monotonic() - began

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image in the form for `submit` (`Segmenter.prepare`); to be called outside the model's threads."""
        return self._segmenter.prepare(image)

    def submit(
        self,
        image: NDArray[np.uint8],
        size: tuple[int, int] | None = None,
        *,
        confidence: bool = False,
        heatmap: bool = True,
        deadline: float = math.inf,
    ) -> Future[Executed]:
        """Put an image into the queue.

        Args:
            image: (H, W, 3) uint8 RGB; `run_bytes` of it must fit into the memory there is.
            size: Its (height, width) before `prepare` padded it; None if it is not padded.
            confidence: Whether to compute the confidence map too.
            heatmap: Whether the heatmap is wanted; if no image of the run wants it, it has no cells.
            deadline: Time on the monotonic clock after which the answer is useless.

        Returns:
            The future of its answer, which may fail with TooLateError, StoppingError, or the exception of the run.
            Cancelling it removes the image from the queue; a run that has begun ends normally, and its answer is
            dropped.

        Raises:
            StoppingError: The model is being closed.
            UsageError: A run of the image alone would take more memory than there is for runs.
        """
        size = size or (image.shape[0], image.shape[1])
        job = _Job(image, size, confidence, heatmap, self._padded(image), deadline)
        if (needed := self._bytes_of(job.pixels)) > self.memory.total:  # in a worker thread this would end the thread
            height, width = size
            raise UsageError(
                f"an image of {height}x{width} takes {needed} bytes of the {self.memory.total} there are for runs;"
                " scale it down, or allow more memory"
            )
        with self._changed:
            if self._closing:
                raise StoppingError("the model is being closed; ask again")
            self._waiting.append(job)
            self._changed.notify()  # one thread: further ones would compete with it for the GIL
        # Not a closure over the job: with its future it would form a cycle, which keeps image and answer too long.
        job.future.add_done_callback(self._forget_cancelled)
        return job.future

    def close(self) -> None:
        """Refuse all waiting images, and return when the current runs have ended."""
        with self._changed:
            self._closing = True
            dropped, self._waiting = self._waiting, []
            self._changed.notify_all()
        for job in dropped:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(
                    StoppingError("the model was closed before the request's turn came; ask again")
                )
        for thread in self._threads:
            thread.join()

    def _padded(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        return self._segmenter.info.geometry.padded(*image.shape[:2])

    def _largest_batch(self, pixels: int) -> int:
        """Return how many images of so many padded pixels a run may take."""
        return max(1, min(self.config.max_batch, self.memory.total // max(1, self._bytes_of(pixels))))

    def _bytes_of(self, pixels: int) -> int:
        """Return the working memory of an image of so many padded pixels: whole bytes, so that sums of it are exact."""
        return math.ceil(pixels * self.bytes_per_pixel)

    def _count(self, waiting: int, most: int) -> int:
        """Return how many of the waiting images one run takes."""
        if waiting >= most or not self.config.powers_of_two:
            return min(waiting, most)
        return 1 << (waiting.bit_length() - 1)

    def _forget_cancelled(self, future: Future[Executed]) -> None:
        if future.cancelled():
            with self._changed:
                self._waiting = [job for job in self._waiting if job.future is not future]

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._run(batch)
                with self._changed:
                    self._running -= 1
                    if self._waiting:
                        self._changed.notify_all()
            del batch  # it holds images, which would otherwise stay until the next request

    def _next_batch(self) -> list[_Job] | None:
        """Wait for jobs of one kind that may run, and take them from the queue in order; None once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            while self._waiting:
                batch, ready_at = self._choose()
                patience = ready_at - time.monotonic()
                if patience > 0:
                    self._changed.wait(patience)
                elif self._may_begin(batch):
                    taken = set(map(id, batch))
                    self._waiting = [job for job in self._waiting if id(job) not in taken]
                    self._running += 1
                    if self._waiting:
                        self._changed.notify()
                    return batch
                else:
                    self._changed.wait()
            return None if self._closing else []

    def _may_begin(self, batch: Sequence[_Job]) -> bool:
        """Tell whether a batch may run now; if nothing else runs, decide whether runs go on side by side."""
        if not self._segmenter.engine.shares_threads:
            return True
        fits = self._fits_beside(sum(job.pixels for job in batch))
        if self._running:
            return self._beside and fits
        self._beside = fits and len(self._waiting) > len(batch)
        return True

    def _fits_beside(self, pixels: int) -> bool:
        """Tell whether a run on so many padded pixels is small enough to go on beside others."""
        return pixels * self.bytes_per_pixel * self.config.runners <= _SHARE_BESIDE * self.memory.total

    def _choose(self) -> tuple[list[_Job], float]:
        """Return the batch that may run first, and from when on: at once if it is full, else when its delay is over."""
        kinds: dict[object, list[_Job]] = {}
        for job in self._waiting:
            kinds.setdefault(job.kind, []).append(job)
        choices = []
        for jobs in kinds.values():
            most = self._largest_batch(jobs[0].pixels)
            batch = jobs[: self._count(len(jobs), most)]
            image_s = self.pace.cautious_seconds(batch[0].pixels)
            latest = min(job.latest for job in batch) - image_s * len(batch)
            ready_at = min(batch[0].submitted + self.config.max_delay_s, latest)
            # Images of a size whose pace is not known yet do not wait for others either.
            waits = self.pace.knows(batch[0].pixels) and len(jobs) < most
            choices.append((batch, ready_at if waits else batch[0].submitted))
        return min(choices, key=lambda choice: choice[1])

    @staticmethod
    def _begin(job: _Job) -> bool:
        """Tell whether a job is still worth running."""
        if not job.future.set_running_or_notify_cancel():
            return False
        if time.monotonic() >= job.deadline:
            job.future.set_exception(TooLateError("the deadline passed while the request waited for its turn"))
            return False
        return True

    def _run(self, batch: list[_Job]) -> None:
        """Run images together once there is memory for them, without those that were cancelled or late by then."""
        with self._room(len(batch), batch[0].pixels):
            jobs = [job for job in batch if self._begin(job)]
            batch.clear()  # see `_answer`
            if jobs:
                self._answer(jobs)

    def _answer(self, jobs: list[_Job]) -> None:
        """Answer images by one run, or by one each if that fails, and remove them from the list.

        The traceback of a failure refers to the frames that it passed through and to their callers. If one of them
        still held a job, whose future refers to the failure, this cycle would keep images in memory too long.
        """
        cold = self._count_kind(jobs[0])
        size, pixels, beside = len(jobs), jobs[0].pixels, self._beside
        began = time.monotonic()
        try:
            answers = self._segmenter.segment_prepared(
                [job.image for job in jobs],
                [job.size for job in jobs],
                confidence=jobs[0].confidence,
                heatmap=any(job.heatmap for job in jobs),
                beside=beside,
            )
        except Exception as error:  # noqa: BLE001 - onnxruntime's have no base; they belong to the callers
            if size == 1:
                jobs.pop().future.set_exception(error)
        else:
            seconds = time.monotonic() - began
            # On CUDA the first run of a size searches for algorithms, and the first with confidences may open a
            # session; their times say nothing about the runs that follow.
            if not cold or self._segmenter.device == "cpu" or not self.pace.knows(pixels):
                self._learn(pixels, size, seconds, beside=beside)
            self._observe(size, seconds)
            for answer in answers:
                job = jobs.pop(0)
                job.future.set_result(Executed(answer, began - job.submitted, seconds, size))
        while jobs:  # one by one, so that an image that fails does not make others fail
            self._answer([jobs.pop(0)])

    @contextmanager
    def _room(self, count: int, pixels: int) -> Iterator[None]:
        """Hold the memory for a run, as soon as it is free, while the block runs.

        Args:
            count: Its images.
            pixels: Padded pixels of each.
        """
        needed = count * self._bytes_of(pixels)
        self.memory.take(needed)
        try:
            yield
        finally:
            self.memory.give_back(needed)

    def _learn(self, pixels: int, images: int, seconds: float, *, beside: bool) -> None:
        """Learn from the time of a run; that of a run with all cores is scaled to its share of them."""
        if self._segmenter.engine.shares_threads and not beside:
            seconds *= self.config.runners
        with self._changed:
            self.pace.add(pixels, images, seconds)

    def _count_kind(self, job: _Job) -> bool:
        """Tell whether jobs of this kind come for the first time, and count their padded size if it is new too."""
        with self._changed:
            if job.kind in self._kinds_seen or len(self._kinds_seen) >= _MOST_SIZES_REMEMBERED:
                return False
            self.cold_sizes += job.padded not in self._kinds_seen
            self._kinds_seen |= {job.padded, job.kind}
            return True

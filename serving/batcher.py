"""Greedy batching: a model's threads run what waits as soon as they are free, images of one padded size together.

On the CPU a run is alone, with all cores, while nothing else waits, so that its answer comes soonest; while more images
wait, runs go on side by side, each with its share of the cores, so that most are answered. For the threads of a run
wait for each other at every layer, and for cores that decode and encode; those of several runs do so less.

An answer does not depend on the batch it was computed in: the geometry is that of one image, and on the CPU the bytes
are the same. A job carries its own future: a caller that has gone away costs no run, and takes nothing from its
neighbours.
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
# Kept back of the time to an image's deadline when it waits for others: so many seconds, or this share if it is more.
_HAND_OVER_S, _HAND_OVER_SHARE = 0.01, 0.1
_LONGEST_REASON = 300
_MOST_SIZES_REMEMBERED = 10_000
# Each way to run keeps the memory of its largest runs: those side by side have so much of it together at most.
_SHARE_BESIDE = 0.25


@dataclass(frozen=True)
class BatchingConfig:
    """How requests share runs.

    Attributes:
        max_batch: Images in one run at most.
        max_delay_s: How long an idle model waits for more images of one padded size, in seconds; less where a deadline
            would pass.
        max_queue: Images that may be under way at a time, from their arrival to the end of their run.
        runners: Runs at a time. On the CPU they share the cores (`EngineOptions.runs`), and an image that waits alone
            has all of them; on CUDA one copies while another computes.
        powers_of_two: Whether runs take as many images as a power of two, where they do not take as many as they may:
            CUDA prepares for every number of images anew.
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
        """When its run must have ended, so that the answer is there in time."""
        if math.isinf(self.deadline):
            return self.deadline
        return self.deadline - max(_HAND_OVER_S, (self.deadline - self.submitted) * _HAND_OVER_SHARE)

    @property
    def pixels(self) -> int:
        return self.padded[0] * self.padded[1]


class Batcher:
    """Runs one model's inferences in threads of its own.

    Args:
        segmenter: The model.
        config: How requests share runs.
        memory: What runs may take together, those of other models included; a run takes `bytes_per_pixel` for each
            padded pixel, and no batch is larger than the whole.
        name: Names the threads, for logs and debuggers.
        observe: Called after every run with its images and seconds, in the thread that ran it.

    Attributes:
        memory: What runs may take together.
        config: How requests share runs.
        pace: How long images take in its runs, by their padded pixels.
        warm_sizes: Image sizes that were run before serving.
        cold_sizes: How many padded sizes have come beside those.
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
        self._beside = False  # how what runs was begun; always False where a model has one way alone
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
        """Run the model on images of these (height, width), alone and in a full batch, so that none is new to it.

        Args:
            sizes: The sizes.
            should_stop: Asked before each run; where it says so, or the model is being closed, no more are warmed.

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
                for first in (True, False):  # the first prepares, the second tells the pace
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
        """Return an image as it is best submitted (`Segmenter.prepare`); in a thread that is not one of the model's."""
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
        """Let an image wait for its turn.

        Args:
            image: (H, W, 3) uint8 RGB; `run_bytes` of it must fit into the memory there is.
            size: Its (height, width), where `prepare` has padded it.
            confidence: Whether to compute the confidence map too.
            heatmap: Whether the heatmap is wanted; where no image of the run wants it, it has no cells.
            deadline: When the answer is of no use any more, on the monotonic clock.

        Returns:
            Its answer, or TooLateError, StoppingError, or what the run failed with. Cancelling it takes the image from
            the queue; a run that has begun goes on to its end, and the answer is dropped.

        Raises:
            StoppingError: The model is being closed.
            UsageError: A run of the image alone would take more memory than there is for runs.
        """
        size = size or (image.shape[0], image.shape[1])
        job = _Job(image, size, confidence, heatmap, self._padded(image), deadline)
        if (needed := self._bytes_of(job.pixels)) > self.memory.total:  # in a run it would end the thread
            height, width = size
            raise UsageError(
                f"an image of {height}x{width} takes {needed} bytes of the {self.memory.total} there are for runs;"
                " scale it down, or allow more memory"
            )
        with self._changed:
            if self._closing:
                raise StoppingError("the model is being closed; ask again")
            self._waiting.append(job)
            self._changed.notify()  # one thread: others that woke would take the interpreter's lock from it
        # Not a closure over the job: with its future it would be a cycle, which keeps image and answer for long.
        job.future.add_done_callback(self._forget_cancelled)
        return job.future

    def close(self) -> None:
        """Refuse what waits, and return when the runs under way have ended."""
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
        """Return how many images of so many that wait a run takes."""
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
            del batch  # it holds images, which must not stay until the next request comes

    def _next_batch(self) -> list[_Job] | None:
        """Take jobs of one kind from the queue, in their order, when they may run; None when no more will come."""
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
        """Tell whether images from the queue may run now, and choose the way where nothing runs."""
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
        """Return the batch that may run first, and from when: at once where it is full, else when its delay is over."""
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
            # Where nothing is known of their pace, images do not wait for others either.
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
        """Run images together as soon as there is memory for them, but for those whose deadline passed meanwhile."""
        with self._room(len(batch), batch[0].pixels):
            jobs = [job for job in batch if self._begin(job)]
            batch.clear()  # see `_answer`
            if jobs:
                self._answer(jobs)

    def _answer(self, jobs: list[_Job]) -> None:
        """Answer images by one run, or by one each where that fails, and take them from the list.

        A failure refers, by its traceback, to the frames that it came through and those that called them. Were a job
        left in one, whose future refers to the failure, that would be a cycle, which keeps images for long.
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
            # On CUDA the first run of a size searches for algorithms, and that with confidences may open a session;
            # neither tells anything of those that follow.
            if not cold or self._segmenter.device == "cpu" or not self.pace.knows(pixels):
                self._learn(pixels, size, seconds, beside=beside)
            self._observe(size, seconds)
            for answer in answers:
                job = jobs.pop(0)
                job.future.set_result(Executed(answer, began - job.submitted, seconds, size))
        while jobs:  # alone, so that one that cannot be computed does not take others with it
            self._answer([jobs.pop(0)])

    @contextmanager
    def _room(self, count: int, pixels: int) -> Iterator[None]:
        """Take the memory for a run, as soon as it is there, while the block runs.

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
        """Take in how long a run took, one that had all cores as if it had had its share of them."""
        if self._segmenter.engine.shares_threads and not beside:
            seconds *= self.config.runners
        with self._changed:
            self.pace.add(pixels, images, seconds)

    def _count_kind(self, job: _Job) -> bool:
        """Tell whether jobs of this kind come for the first time, and count their size where it does."""
        with self._changed:
            if job.kind in self._kinds_seen or len(self._kinds_seen) >= _MOST_SIZES_REMEMBERED:
                return False
            self.cold_sizes += job.padded not in self._kinds_seen
            self._kinds_seen |= {job.padded, job.kind}
            return True

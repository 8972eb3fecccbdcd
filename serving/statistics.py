"""Statistics of a model since it was loaded: counts and durations."""

import threading
import time
from asyncio import CancelledError
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from serving.errors import InvalidFieldError, Reason, RefusedError

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Outcome(StrEnum):
    """The outcome of an image that reached its model."""

    ANSWERED = "answered"
    INVALID = "invalid"
    """It cannot be read, or is beyond a limit."""
    REFUSED = "refused"
    """The server refused it; `Reason` says why."""
    CANCELLED = "cancelled"
    """Its client went away, or another image of its request failed."""
    FAILED = "failed"
    """A fault of the server."""


@dataclass(frozen=True)
class Stages:
    """Seconds that one image spent in the server's stages.

    Attributes:
        arrived: When the image came, on the monotonic clock.
        ended: When its answer was made, on the monotonic clock.
        decode_s: Checking and decoding, from its arrival.
        queue_s: Waiting in the model's queue.
        infer_s: The run of the image's batch.
        encode_s: Making the answer.
        batch_size: Number of images in that batch.
    """

    arrived: float
    ended: float
    decode_s: float
    queue_s: float
    infer_s: float
    encode_s: float
    batch_size: int

    @property
    def intervals(self) -> tuple[tuple[str, float, float], ...]:
        """Each stage's name, beginning and end, in seconds on the monotonic clock."""
        decoded = self.arrived + self.decode_s
        begun = decoded + self.queue_s
        return (
            ("decode", self.arrived, decoded),
            ("queue", decoded, begun),
            ("infer", begun, begun + self.infer_s),
            ("encode", self.ended - self.encode_s, self.ended),
        )


@dataclass
class Duration:
    """A histogram of durations: number, sum, and counts by bucket.

    Attributes:
        count: How often it happened.
        seconds: How long it took in all.
        buckets: How often it took longer than the previous bound of `BOUNDS_S` and at most this one; the last counts
            everything longer.
    """

    count: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))

    def add(self, seconds: float) -> None:
        """Add one duration."""
        self.count += 1
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1


@dataclass
class Statistics:
    """Counts and durations of one model; threads may share it.

    Attributes:
        success: Images answered, from arrival to answer.
        failure: Images not answered, from arrival to the refusal.
        queue: Time that answered images waited for their run.
        decode: Time to decode answered images.
        infer: Time of the runs of answered images; each image counts the time of its whole batch.
        encode: Time to write the answers.
        runs: Runs by their number of images.
        outcomes: Images by outcome.
        refusals: Refused images by reason.
        last_run: When the last run ended, in seconds since the epoch; 0 before the first.
    """

    success: Duration = field(default_factory=Duration)
    failure: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    decode: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    encode: Duration = field(default_factory=Duration)
    runs: dict[int, Duration] = field(default_factory=dict)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    refusals: Counter[Reason] = field(default_factory=Counter)
    last_run: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def ran(self, images: int, seconds: float) -> None:
        """Count a run of so many images."""
        with self._lock:
            self.runs.setdefault(images, Duration()).add(seconds)
            self.last_run = time.time()

    def answered(self, stages: Stages) -> None:
        """Count an image that was answered."""
        with self._lock:
            self.outcomes[Outcome.ANSWERED] += 1
            self.success.add(stages.decode_s + stages.queue_s + stages.infer_s + stages.encode_s)
            self.decode.add(stages.decode_s)
            self.queue.add(stages.queue_s)
            self.infer.add(stages.infer_s)
            self.encode.add(stages.encode_s)

    def failed(self, seconds: float, error: BaseException) -> None:
        """Count an image that was not answered, after so many seconds and for this reason."""
        with self._lock:
            self.failure.add(seconds)
            match error:
                case InvalidFieldError():
                    outcome = Outcome.INVALID
                case RefusedError():
                    outcome = Outcome.REFUSED
                    self.refusals[error.reason] += 1
                case CancelledError():
                    outcome = Outcome.CANCELLED
                case _:
                    outcome = Outcome.FAILED
            self.outcomes[outcome] += 1

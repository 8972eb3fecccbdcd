"""What a model has done since it was loaded: counts and durations, for whoever asks."""

import threading
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stages:
    """Seconds that one image spent in the server's stages.

    Attributes:
        decode_s: Checking and decoding, from its arrival.
        queue_s: Waiting for the model's turn.
        infer_s: The run of its batch.
        encode_s: Making the answer.
        batch_size: Images in its run.
    """

    decode_s: float
    queue_s: float
    infer_s: float
    encode_s: float
    batch_size: int


@dataclass
class Duration:
    """How often something happened and how long it took in all.

    Attributes:
        count: How often.
        seconds: Seconds in all.
    """

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Take one more in."""
        self.count += 1
        self.seconds += seconds


@dataclass
class Statistics:
    """Counts and durations of one model; threads may share it.

    Attributes:
        success: Images answered, from arrival to answer.
        failure: Images not answered, from arrival to the refusal.
        queue: Waiting of the answered.
        decode: Decoding of the answered.
        infer: Runs of the answered, the whole batch's time for each.
        encode: Writing of the answered.
        runs: Runs by their number of images.
        last_run: When the last run ended, in seconds since the epoch; 0 before the first.
    """

    success: Duration = field(default_factory=Duration)
    failure: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    decode: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    encode: Duration = field(default_factory=Duration)
    runs: dict[int, Duration] = field(default_factory=dict)
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
            self.success.add(stages.decode_s + stages.queue_s + stages.infer_s + stages.encode_s)
            self.decode.add(stages.decode_s)
            self.queue.add(stages.queue_s)
            self.infer.add(stages.infer_s)
            self.encode.add(stages.encode_s)

    def failed(self, seconds: float) -> None:
        """Count an image that was not answered."""
        with self._lock:
            self.failure.add(seconds)

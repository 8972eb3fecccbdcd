"""A model that is open and can answer, and how it was opened."""

import threading
from dataclasses import dataclass, replace
from pathlib import Path

from fcnseg.devices import resolve_device
from fcnseg.engine import DEFAULT_OPTIONS, Engine, EngineOptions
from fcnseg.model_file import ModelInfo
from fcnseg.tuning import NOTHING_SAID, Settings, tuned_settings
from serving.admission import Admission
from serving.batcher import DEFAULT_BATCHING, Batcher, BatchingConfig
from serving.drift import Drift
from serving.file_stamp import FileStamp
from serving.statistics import Statistics


@dataclass(frozen=True)
class ModelConfig:
    """How models are opened and run.

    Attributes:
        device: `cpu`, `cuda`, `cuda:N`, or `auto`.
        options: How the models' sessions run.
        batching: How requests share runs.
        max_memory: Memory limit in bytes for all images in progress: half for images that wait and answers that are
            written, half for runs. 0 takes half of the machine's memory, and on CUDA half of the device's for runs.
        warm_sizes: (height, width) of the images that are run before serving.
        said: Explicit settings, which override those in `options` and `batching` and tuned ones.
        tuned: Whether the settings in a model's `MODEL.tune.json` apply where `said` has none.
        sharers: How many processes share `max_memory`.
    """

    device: str = "auto"
    options: EngineOptions = DEFAULT_OPTIONS
    batching: BatchingConfig = DEFAULT_BATCHING
    max_memory: int = 0
    warm_sizes: tuple[tuple[int, int], ...] = ()
    said: Settings = NOTHING_SAID
    tuned: bool = False
    sharers: int = 1

    def for_model(self, path: Path) -> tuple[EngineOptions, BatchingConfig]:
        """Return how the sessions of a model file run, and how requests share its runs."""
        device = resolve_device(self.device)
        found = tuned_settings(path, device) if self.tuned else NOTHING_SAID
        settings = self.said.over(found.with_runs(self.said.runners) if self.said.runners else found)
        options = settings.engine_options(self.options)
        runners = settings.runners or self.batching.runners
        if device == "cpu":
            if settings.runners is None and options.threads:
                runners = min(runners, options.threads)
            options = replace(options, runs=runners)
        max_batch = settings.max_batch or self.batching.max_batch
        return options, replace(self.batching, runners=runners, max_batch=max_batch, powers_of_two=device != "cpu")


DEFAULT_CONFIG = ModelConfig()


class Users:
    """Counts the requests that are using a model, so that it is closed when none is."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def enter(self) -> None:
        """Count one more."""
        with self._changed:
            self._count += 1

    def leave(self) -> None:
        """Count one less."""
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_until_none(self, timeout_s: float) -> None:
        """Return when there is none, or after a time."""
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0, timeout_s)


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that is open and can answer.

    Attributes:
        name: What clients call it.
        version: A positive number in decimal.
        engine: The open model file.
        batcher: Runs the model on batches of images.
        admission: Decides which requests are let in.
        statistics: Counts and durations of the model's images.
        drift: Sums over the model's answers, to see them change.
        stamp: What its file was when it was opened; see `stamp_of`.
        users: The requests that are using it.
    """

    name: str
    version: str
    engine: Engine
    batcher: Batcher
    admission: Admission
    statistics: Statistics
    drift: Drift
    stamp: FileStamp
    users: Users

    @property
    def info(self) -> ModelInfo:
        """What its file says of itself."""
        return self.engine.info

    @property
    def device(self) -> str:
        """Where it runs: `cpu` or `cuda:N`."""
        return self.engine.device

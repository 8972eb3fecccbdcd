"""Finds the best settings for a model on this machine by measuring them one after the other.

The measurement imitates a server: clients decode images, concurrent runs segment them, and the masks are encoded, all
on the same cores. For the latency there is one client. Settings are tried one kind after the other. Those of one kind
are measured alternately with the best so far, so that other load on the machine affects all alike, and each round gives
the ratio of their speeds. A setting wins only if the median ratio exceeds 1 by more than the spread of the ratios and a
few percent; otherwise the best so far stays.
"""

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from fcnseg import images, masks
from fcnseg.cores import threads_for, usable_cores
from fcnseg.devices import resolve_device
from fcnseg.engine import PIPELINE_OPTIONS, Engine, EngineOptions
from fcnseg.errors import UsageError, one_line
from fcnseg.files import sha256_of
from fcnseg.masks import Encoding
from fcnseg.pictures import encode_jpeg
from fcnseg.sample_image import sample_image
from fcnseg.segmenter import Segmenter
from fcnseg.tuning import Measurement, Objective, Settings, Tuning, default_settings, this_machine

_log = logging.getLogger(__name__)

_ROUNDS = 7
_LEAST_GAIN = 1.03
_MOST_THREADS_TRIED = 4
_RUNNERS, _CUDA_RUNNERS = (1, 2, 4, 8), (1, 3)
_CPU_BATCHES, _CUDA_BATCHES = (2, 4, 8), (1, 2, 4, 16, 32)


class Tuner:
    """Tries settings on one model.

    Args:
        model: The model file.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`.
        sizes: (height, width) of the images, at least one; they are used in turn.
        seconds: About how long to measure in all; a run that takes longer than its share is finished.
        objective: `latency` for the shortest answer to one client, `throughput` for the most images of many clients.
        observe: Called with each measurement.

    Raises:
        DeviceError: There is no such device.
        UsageError: No setting affects the objective on this device, or `seconds` is not finite.
    """

    def __init__(
        self,
        model: Path,
        device: str,
        sizes: Sequence[tuple[int, int]],
        seconds: float,
        objective: Objective,
        observe: Callable[[Measurement], None] = lambda _: None,
    ) -> None:
        self._model = model
        self._device = resolve_device(device)
        self._sizes = tuple(sizes)
        self._seconds = seconds
        self._objective = objective
        self._observe = observe
        self._segmenters: dict[EngineOptions, Segmenter] = {}
        self._files = [encode_jpeg(sample_image(*size)) for size in self._sizes]
        self._default = default_settings(self._device)
        if objective == "latency":  # one image at a time
            self._default = replace(self._default, runners=1)
        self._measurements: list[Measurement] = []
        if not math.isfinite(seconds):
            raise UsageError(f"the time to measure is {seconds} s; it must be a finite number")
        if self._device != "cpu" and objective == "latency":
            raise UsageError(
                f"on {self._device} no setting changes the latency of one client; use --objective throughput, or"
                " --device cpu"
            )

    def run(self) -> Tuning:
        """Measure, and return the settings that beat the default, and on the CPU always whether threads spin.

        Raises:
            ModelFileError: The file is not a valid fcnseg model.
            DeviceError: The device cannot run it.
        """
        sha256 = sha256_of(self._model)
        best = self._default
        self._answers_per_s(best, 0)  # fails early if the model cannot be run
        kinds = self._kinds()
        for kind in kinds:
            best = self._best_of(best, kind(best), self._seconds / len(kinds))
        machine = this_machine(self._device)
        found = best.beside(self._default)
        if self._device == "cpu":  # stated in any case, since the default of `load` differs
            found = replace(found, spinning=best.spinning)
        if self._objective == "throughput":  # the number of threads is valid only with these
            found = replace(found, runners=best.runners)
        return Tuning(sha256, machine, self._objective, self._sizes, found, tuple(self._measurements))

    def _kinds(self) -> list[Callable[[Settings], list[Settings]]]:
        """Return, for each kind of setting, a function from the best settings so far to the alternatives to try."""
        on_cpu = [_other_threads, _other_spinning] if self._device == "cpu" else []
        of_many = [self._other_runners, self._other_batches] if self._objective == "throughput" else []
        return [*on_cpu, *of_many]

    def _other_runners(self, best: Settings) -> list[Settings]:
        counts = _CUDA_RUNNERS if self._device != "cpu" else [count for count in _RUNNERS if count <= usable_cores()]
        return [replace(best, runners=count) for count in counts if count != best.runners]

    def _other_batches(self, best: Settings) -> list[Settings]:
        sizes = _CPU_BATCHES if self._device == "cpu" else _CUDA_BATCHES
        return [replace(best, max_batch=size) for size in sizes]

    def _best_of(self, best: Settings, others: Sequence[Settings], seconds: float) -> Settings:
        """Measure settings alternately with the best so far, and return the new best."""
        candidates = [best, *others]
        slice_s = seconds / (_ROUNDS * len(candidates))
        rates: dict[Settings, list[float]] = {settings: [] for settings in candidates}
        for round_, settings in itertools.product(range(_ROUNDS + 1), candidates):  # the first round warms up
            if settings not in rates:
                continue
            try:
                rate = self._answers_per_s(settings, slice_s if round_ else 0)
            except Exception as error:
                if settings == best:
                    raise
                # Such as out of memory; onnxruntime's errors share no base class but Exception.
                _log.warning("left out: %s: %s", settings, one_line(error))
                del rates[settings]
                continue
            if round_:
                rates[settings].append(rate)
        self._segmenters = {}  # free their copies of the weights
        tried = [_compare(settings, rates[settings], rates[best]) for settings in others if settings in rates]
        winners = [measurement for measurement in tried if measurement.won]
        winner = max(winners, key=lambda measurement: measurement.gain, default=None)
        base = Measurement(best, float(np.median(rates[best])), 1.0, 0.0, won=winner is None)
        for measurement in (base, *tried):
            final = replace(measurement, won=measurement is (winner or base))
            self._measurements.append(final)
            self._observe(final)
        return winner.settings if winner else best

    def _answers_per_s(self, settings: Settings, seconds: float) -> float:
        """Let clients request masks for a time, each at least once, and return the answered images per second."""
        segmenter = self._open(settings)
        runners, batch = settings.runners or 1, settings.max_batch or 1
        clients = 1 if self._objective == "latency" else runners + usable_cores()
        batch = 1 if self._objective == "latency" else batch
        free = threading.BoundedSemaphore(runners)
        began = time.perf_counter()
        end = began + seconds

        def ask(client: int) -> int:
            answered = 0
            for file in itertools.islice(itertools.cycle(self._files), client, None):
                decoded = [images.decode(file) for _ in range(batch)]
                with free:
                    answers = segmenter.segment_batch(decoded)
                for answer in answers:
                    masks.encode(answer.class_map, Encoding.PNG, answer.label_map)
                answered += batch
                if time.perf_counter() >= end:
                    break
            return answered

        with ThreadPoolExecutor(clients) as pool:
            answered = sum(pool.map(ask, range(clients)))
        return answered / (time.perf_counter() - began)

    def _open(self, settings: Settings) -> Segmenter:
        options = settings.engine_options(PIPELINE_OPTIONS)
        if self._device == "cpu":  # concurrent runs share the threads
            options = options.beside(settings.runners or 1)
        if options not in self._segmenters:
            self._segmenters[options] = Segmenter(Engine(self._model, self._device, options))
        return self._segmenters[options]


def _other_threads(best: Settings) -> list[Settings]:
    """Return all cores, half of them, and so on, without the default number."""
    cores = usable_cores()
    counts = dict.fromkeys([*(max(1, cores >> k) for k in range(_MOST_THREADS_TRIED - 1)), 1])
    return [replace(best, threads=count) for count in counts if count != threads_for(0)]


def _other_spinning(best: Settings) -> list[Settings]:
    return [replace(best, spinning=not best.spinning)]


def _compare(settings: Settings, rates: Sequence[float], best: Sequence[float]) -> Measurement:
    ratios = np.divide(rates, best)
    low, gain, high = map(float, np.quantile(ratios, (0.25, 0.5, 0.75)))
    won = gain > max(_LEAST_GAIN, 1 + high - low)
    return Measurement(settings, float(np.median(rates)), gain, high - low, won)

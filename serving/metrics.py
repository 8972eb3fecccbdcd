"""The server's metrics for Prometheus; `docs/operating.md` has the table.

Nothing here is on a request's path. Counts are kept where they arise (`statistics`, `drift`, `observer`) and become
metrics at a scrape. Labels are only methods, models and classes that the server knows: no client can create series.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from serving.errors import Reason
from serving.observer import CallObserver
from serving.registry import ModelRegistry
from serving.served_model import ServedModel
from serving.statistics import BOUNDS_S, Duration, Outcome

_MODEL = ("model", "version")
_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def collect_into(
    collectors: CollectorRegistry, models: ModelRegistry, calls: CallObserver, is_ready: Callable[[], bool]
) -> None:
    """Register the metrics of a server and its process.

    Args:
        collectors: The registry to add them to.
        models: The server's models.
        calls: Counts its calls.
        is_ready: Returns whether its health is SERVING.
    """
    collectors.register(_ServerCollector(models, calls, is_ready))
    collectors.register(_ModelCollector(models))
    ProcessCollector(registry=collectors)


def write_ready(*, is_ready: bool) -> Metric:
    """Return the metric that tells whether health is SERVING."""
    return GaugeMetricFamily("fcnseg_ready", "1 where health is SERVING, else 0.", float(is_ready))


class _ServerCollector(Collector):
    def __init__(self, models: ModelRegistry, calls: CallObserver, is_ready: Callable[[], bool]) -> None:
        self._models = models
        self._calls = calls
        self._is_ready = is_ready

    def collect(self) -> Iterable[Metric]:
        yield write_ready(is_ready=self._is_ready())
        yield GaugeMetricFamily(
            "fcnseg_unopened_models",
            "Models of which a file could not be opened at the last try.",
            float(len(self._models.unopened)),
        )
        ended, received, sent = self._calls.counts()
        requests = CounterMetricFamily("fcnseg_requests", "Calls that have ended.", labels=("method", "code"))
        for labels, count in sorted(ended.items()):
            requests.add_metric(labels, count)
        yield requests
        for name, help_, counts in (
            ("fcnseg_request_bytes", "Bytes of the messages received.", received),
            ("fcnseg_response_bytes", "Bytes of the messages sent.", sent),
        ):
            family = CounterMetricFamily(name, help_, labels=("method",))
            for method, count in sorted(counts.items()):
                family.add_metric((method,), count)
            yield family
        taken = GaugeMetricFamily(
            "fcnseg_memory_bytes", "Working memory taken: by images held, by runs.", labels=("use",)
        )
        limit = GaugeMetricFamily("fcnseg_memory_limit_bytes", "Working memory there is.", labels=("use",))
        for use, budget in (("held", self._models.held), ("running", self._models.running)):
            taken.add_metric((use,), budget.taken)
            limit.add_metric((use,), budget.total)
        yield taken
        yield limit


class _ModelCollector(Collector):
    def __init__(self, models: ModelRegistry) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        models = self._models.models
        yield _write_info(models)
        yield from _write_queues(models)
        yield from _write_counts(models)
        yield _write_durations(models)
        yield _write_batches(models)
        yield from _write_drift(models)


def _labels(model: ServedModel) -> tuple[str, str]:
    return model.name, model.version


def _write_info(models: Sequence[ServedModel]) -> Metric:
    info = InfoMetricFamily("fcnseg_model", "An open model, and where it runs.", labels=_MODEL)
    for model in models:
        info.add_metric(
            _labels(model),
            {
                "architecture": model.info.architecture,
                "variant": model.info.variant,
                "device": model.device,
                "provider": model.engine.provider,
                "precision": model.engine.precision,
            },
        )
    return info


def _write_queues(models: Sequence[ServedModel]) -> Iterator[Metric]:
    queue = GaugeMetricFamily(
        "fcnseg_queue_images", "Images under way, from their arrival to the end of their run.", labels=_MODEL
    )
    limit = GaugeMetricFamily("fcnseg_queue_limit_images", "Images that may be under way.", labels=_MODEL)
    for model in models:
        queue.add_metric(_labels(model), model.admission.pending)
        limit.add_metric(_labels(model), model.batcher.config.max_queue)
    yield queue
    yield limit


def _write_counts(models: Sequence[ServedModel]) -> Iterator[Metric]:
    images = CounterMetricFamily("fcnseg_images", "Images that reached a model.", labels=(*_MODEL, "outcome"))
    refusals = CounterMetricFamily("fcnseg_refusals", "Images refused.", labels=(*_MODEL, "reason"))
    cold = CounterMetricFamily("fcnseg_cold_shapes", "Padded sizes that were not warm when they came.", labels=_MODEL)
    for model in models:
        for outcome in Outcome:
            images.add_metric((*_labels(model), outcome), model.statistics.outcomes[outcome])
        for reason in Reason:
            refusals.add_metric((*_labels(model), reason), model.statistics.refusals[reason])
        cold.add_metric(_labels(model), model.batcher.cold_sizes)
    yield images
    yield refusals
    yield cold


def _write_durations(models: Sequence[ServedModel]) -> Metric:
    family = HistogramMetricFamily(
        "fcnseg_stage_seconds", "What the stages of an answered image took.", labels=(*_MODEL, "stage")
    )
    for model in models:
        done = model.statistics
        stages: tuple[tuple[str, Duration], ...] = (
            ("decode", done.decode),
            ("queue", done.queue),
            ("infer", done.infer),
            ("encode", done.encode),
            ("total", done.success),
        )
        for stage, duration in stages:
            buckets = _accumulate(BOUNDS_S, tuple(duration.buckets))
            family.add_metric((*_labels(model), stage), buckets, duration.seconds)
    return family


def _write_batches(models: Sequence[ServedModel]) -> Metric:
    family = HistogramMetricFamily("fcnseg_batch_images", "Images in one run.", labels=_MODEL)
    for model in models:
        runs = {images: duration.count for images, duration in list(model.statistics.runs.items())}
        counts = [
            sum(count for images, count in runs.items() if low < images <= high)
            for low, high in zip((0, *_BATCH_BOUNDS), (*_BATCH_BOUNDS, float("inf")), strict=True)
        ]
        total = sum(images * count for images, count in runs.items())
        family.add_metric(_labels(model), _accumulate(_BATCH_BOUNDS, counts), total)
    return family


def _write_drift(models: Sequence[ServedModel]) -> Iterator[Metric]:
    shares = CounterMetricFamily(
        "fcnseg_class_share", "Sum over images of a class's share of the pixels.", labels=(*_MODEL, "class")
    )
    confidence = SummaryMetricFamily(
        "fcnseg_confidence", "Mean confidence of the images whose confidence map was wanted.", labels=_MODEL
    )
    for model in models:
        for name, share in list(model.drift.shares.items()):
            shares.add_metric((*_labels(model), name), share)
        confidence.add_metric(_labels(model), model.drift.confidences, model.drift.confidence)
    yield shares
    yield confidence


def _accumulate(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the cumulative counts at or below each bound, and the total count."""
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(counts), strict=True))

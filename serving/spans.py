"""Calls as OpenTelemetry spans: one for a call, below it one for each of several images, and below those the stages.

The spans of stages are made when the stages are over, from times that are measured anyway: no code runs inside a span.

Names and attributes follow OpenTelemetry's conventions for RPC servers; our own begin with `fcnseg.`.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

import fcnseg
from fcnseg.errors import UsageError
from fcnseg.exchange import LONGEST_ID
from serving.calls import asked_by_probes
from serving.statistics import Stages

_log = logging.getLogger(__name__)

_PROPAGATOR = TraceContextTextMapPropagator()
_CONTEXT_KEYS = ("traceparent", "tracestate")
# Errors of the server; other codes may be due to the client: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
_SILENCE_S = 300.0


class Span:
    """The span of a call, or of one of its images; if the trace is not sampled, nothing is recorded.

    Args:
        tracer: Makes the child spans.
        span: OpenTelemetry's span.
        epoch_ns: The time at which the monotonic clock was 0, in nanoseconds since the epoch; the same for all spans of
            a call, so that their times are consistent.
    """

    def __init__(self, tracer: trace.Tracer, span: trace.Span, epoch_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._epoch_ns = epoch_ns

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits; empty where there is none."""
        context = self._span.get_span_context()
        return trace.format_trace_id(context.trace_id) if context.is_valid else ""

    def begin_image(self, image_id: str) -> "Span":
        """Begin the span of one of several images.

        Args:
            image_id: The id that its client gave it, empty for none; a long one is truncated.
        """
        attributes = {"fcnseg.image.id": image_id[:LONGEST_ID]} if image_id else {}
        return Span(self._tracer, self._begin("image", time.monotonic(), attributes), self._epoch_ns)

    def reached(self, model: str, version: str) -> None:
        """Record the requested model."""
        self._span.set_attributes({"fcnseg.model.name": model, "fcnseg.model.version": version})

    def decoded(self, height: int, width: int) -> None:
        """Record the image's size, unless the call was cancelled meanwhile and its span has ended."""
        if self._span.is_recording():  # otherwise OpenTelemetry would warn that the span has ended
            self._span.set_attributes({"fcnseg.image.height": height, "fcnseg.image.width": width})

    def answered(self, stages: Stages) -> None:
        """Record the durations of an image's stages."""
        if not self._span.is_recording():
            return
        for name, began, ended in stages.intervals:
            attributes = {"fcnseg.batch.size": stages.batch_size} if name == "infer" else {}
            self._begin(name, began, attributes).end(self._at(ended))

    def set_status(self, code: grpc.StatusCode, message: str = "") -> None:
        """Record the status code and the error message that the client gets."""
        number: int = code.value[0]
        self._span.set_attribute("rpc.grpc.status_code", number)
        if code in _FAULTS:
            self._span.set_attribute("error.type", code.name)
            self._span.set_status(trace.StatusCode.ERROR, message)

    def end(self) -> None:
        """End the span."""
        self._span.end(self._at(time.monotonic()))

    def _begin(self, name: str, began: float, attributes: Mapping[str, AttributeValue]) -> trace.Span:
        context = trace.set_span_in_context(self._span)
        return self._tracer.start_span(name, context, attributes=attributes, start_time=self._at(began))

    def _at(self, moment: float) -> int:
        return self._epoch_ns + int(moment * 1e9)


class CallTracer:
    """Begins a span for each call, within the trace that the client's W3C trace context names.

    Args:
        provider: Exports the spans; it is shut down with the tracer.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("fcnseg.serving", fcnseg.__version__)

    def begin(
        self, method: str, request_id: str, metadata: Iterable[tuple[str, str | bytes]], began: float
    ) -> Span | None:
        """Begin a call's span; None for methods that probes call every few seconds.

        Args:
            method: The method's full name.
            request_id: The call's id.
            metadata: The call's metadata.
            began: When the call arrived, on the monotonic clock.
        """
        if asked_by_probes(method):
            return None
        epoch_ns = time.time_ns() - int(time.monotonic() * 1e9)
        carrier = {key: value for key, value in metadata if key in _CONTEXT_KEYS}
        service, _, name = method.rpartition("/")
        span = self._tracer.start_span(
            method,
            _PROPAGATOR.extract(carrier),
            trace.SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, "fcnseg.request_id": request_id},
            start_time=epoch_ns + int(began * 1e9),
        )
        return Span(self._tracer, span, epoch_ns)

    def close(self, timeout_s: float) -> None:
        """Send the remaining spans, for at most a number of seconds.

        If the receiver does not answer, the sending thread may take longer; it ends with the process.
        """
        closing = threading.Thread(target=self._provider.shutdown, name="spans-flush", daemon=True)
        closing.start()
        closing.join(timeout_s)


def open_tracer(endpoint: str) -> CallTracer | None:
    """Return a tracer that exports spans by OTLP over gRPC, in its own thread, in a batch every few seconds.

    If the receiver does not accept them, they are dropped, and a warning is logged once in five minutes. Everything
    else, such as sampling, headers, certificates, service name and attributes, is set by OpenTelemetry's environment
    variables.

    Args:
        endpoint: The receiver's address, http://HOST:PORT or https://HOST:PORT.

    Returns:
        The tracer; None if OTEL_TRACES_EXPORTER is `none`.

    Raises:
        UsageError: The address is not valid, or the environment asks for another protocol or exporter.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter == "none":
        return None
    if exporter != "otlp":
        raise UsageError(f"OTEL_TRACES_EXPORTER is {exporter!r}; spans are sent by otlp, or by none")
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    for variable, protocol in ((name, os.environ[name]) for name in variables if os.environ.get(name)):
        if protocol != "grpc":
            raise UsageError(f"{variable} is {protocol!r}; spans are sent over grpc, to port 4317 of most receivers")
        break
    _require_url(endpoint)
    logger = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _SeldomHandler) for handler in logger.handlers):
        logger.addHandler(_SeldomHandler())
        logger.propagate = False
    ours = {"service.name": "fcnseg", "service.version": fcnseg.__version__}
    resource = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return CallTracer(provider)


def _require_url(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            f"the receiver of spans {endpoint!r} is not http://HOST:PORT or https://HOST:PORT, such as"
            " http://127.0.0.1:4317"
        )


class _SeldomHandler(logging.Handler):
    """Logs OpenTelemetry's complaints, which come with every batch, once in five minutes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._silent_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _SILENCE_S
            minutes = round(_SILENCE_S / 60)
            _log.warning("spans may be lost, told once in %d minutes: %s", minutes, record.getMessage())

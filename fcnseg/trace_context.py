"""Propagate the trace of a request as W3C trace context, if the program traces with OpenTelemetry."""

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Return metadata that make a server's spans children of the caller's span; empty if there is no span.

    This does not import OpenTelemetry first: a program that has a span has imported it already.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - an extra

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())

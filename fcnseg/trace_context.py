"""Which trace a request belongs to, in the words of W3C trace context, where the program traces with OpenTelemetry."""

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Return the metadata that let a server's spans stand under the caller's span; empty where there is none.

    OpenTelemetry is not imported here: a program that has a span has imported it.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - an extra

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())

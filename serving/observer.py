"""Every call is counted, named and logged."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

import grpc

from serving.calls import REQUEST_ID_KEY, Call, current_call, current_span, ran_out, read_request_id
from serving.handlers import parts_of

if TYPE_CHECKING:
    from serving.handlers import Context, Handler
    from serving.spans import CallTracer

_UNKNOWN = "other"
# Series that exist from the start with 0: alerts use `increase`, which misses the first event of a series born with 1.
_COUNTED_FROM_THE_START = (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


class CallObserver(grpc.aio.ServerInterceptor):
    """Counts calls and their bytes, gives each call its id, and logs its end.

    It is the outermost interceptor, so that it sees what the client sees. Methods that do not exist are counted
    together, so that no name invented by a client becomes a label.

    Args:
        methods: The existing methods, as SERVICE/METHOD.
        tracer: Traces calls; None for no traces.

    Attributes:
        ended: Calls that have ended, by method and code; 0 for OK, INTERNAL and UNKNOWN of each method at first.
        received: Bytes of the requests, by method.
        sent: Bytes of the responses, by method.
    """

    def __init__(self, methods: Collection[str], tracer: "CallTracer | None" = None) -> None:
        self._methods = frozenset(methods)
        self._tracer = tracer
        self.ended: Counter[tuple[str, str]] = Counter(
            {(method, code.name): 0 for method in self._methods for code in _COUNTED_FROM_THE_START}
        )
        self.received: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def counts(self) -> tuple[dict[tuple[str, str], int], dict[str, int], dict[str, int]]:
        """Return copies of `ended`, `received` and `sent`."""
        with self._lock:
            return dict(self.ended), dict(self.received), dict(self.sent)

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wrap a method's handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            self._end(_UNKNOWN, grpc.StatusCode.UNIMPLEMENTED)
            return None
        method = handler_call_details.method.removeprefix("/")
        if method not in self._methods:  # from a caller without a valid token: it is refused in any case
            method = _UNKNOWN
        if (parts := parts_of(handler)) is None:
            return handler
        make, inner = parts
        return make(
            self._around(inner, method),
            self._counting_received(handler.request_deserializer, method),
            self._counting_sent(handler.response_serializer, method),
        )

    def _around(self, inner: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        async def observed(request: Any, context: "Context") -> Any:
            began = time.monotonic()
            metadata = context.invocation_metadata() or ()
            call = Call(method, read_request_id(metadata), context.peer())
            current_call.set(call)  # the call's task ends with it
            span = None
            if self._tracer is not None:
                span = self._tracer.begin(method, call.request_id, metadata, began)
                current_span.set(span)
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            code = grpc.StatusCode.UNKNOWN
            try:
                answer = await inner(request, context)
                code = _code(context, grpc.StatusCode.OK)
            except asyncio.CancelledError:
                late = ran_out(context.time_remaining())
                code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                raise
            except grpc.aio.AbortError as error:
                code = _code(context, grpc.StatusCode.UNKNOWN)
                # gRPC's call holds the error, and frames of its traceback hold the call: a cycle, which would leak.
                del request
                error.__context__ = None
                raise error.with_traceback(None) from None
            except BaseException:
                code = _code(context, grpc.StatusCode.UNKNOWN)
                raise
            finally:
                self._end(method, code)
                call.log(code, time.monotonic() - began, _details(context))
                if span is not None:
                    span.set_status(code, _details(context))
                    span.end()
            return answer

        return observed

    def _end(self, method: str, code: grpc.StatusCode) -> None:
        with self._lock:
            self.ended[method, code.name] += 1

    def _counting_received(self, parse: Callable[[bytes], Any] | None, method: str) -> Callable[[bytes], Any]:
        def counting(data: bytes) -> Any:
            with self._lock:
                self.received[method] += len(data)
            return parse(data) if parse else data

        return counting

    def _counting_sent(self, serialize: Callable[[Any], bytes] | None, method: str) -> Callable[[Any], bytes]:
        def counting(response: Any) -> bytes:
            data: bytes = serialize(response) if serialize else response
            with self._lock:
                self.sent[method] += len(data)
            return data

        return counting


def _details(context: "Context") -> str:
    """Return the error message that the client got; empty if none."""
    details = context.details()
    return details if isinstance(details, str) else ""


def _code(context: "Context", otherwise: grpc.StatusCode) -> grpc.StatusCode:
    """Return the status code that a call was ended with, or else `otherwise`."""
    code = context.code()
    return code if isinstance(code, grpc.StatusCode) else otherwise

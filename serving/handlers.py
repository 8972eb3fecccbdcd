"""What interceptors and servicers share: a call's deadline, and the base classes of interceptors."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

if TYPE_CHECKING:  # generic for the type checker alone
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def deadline_of(context: "Context") -> float:
    """Return a call's deadline on the monotonic clock; infinity if it has none."""
    remaining: float | None = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


def held_by(context: "Context") -> ExitStack:
    """Return a stack that is closed when the call has ended and its answer has been sent."""
    held = ExitStack()
    context.add_done_callback(lambda _: held.close())  # type: ignore[arg-type] # the context is not asked
    return held


def parts_of(handler: "Handler") -> "tuple[Callable[..., Handler], Callable[..., Any]] | None":
    """Return gRPC's factory for a handler's kind, and its behaviour function; None for kinds that are not used here."""
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler, handler.unary_unary
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    if handler.stream_stream is not None:
        return grpc.stream_stream_rpc_method_handler, handler.stream_stream
    return None


class HandlerInterceptor(grpc.aio.ServerInterceptor, ABC):
    """Wraps the handler of each method once, so the inner interceptors must return the same handler for every call."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    @abstractmethod
    def wrap(self, handler: "Handler", method: str) -> "Handler":
        """Return the handler to use in the place of another.

        Args:
            handler: Answers the calls.
            method: The method's full name.
        """

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return a method's wrapped handler; None for methods that do not exist, which are not cached."""
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._wrapped[method] = self.wrap(handler, method)
        return self._wrapped[method]


class UnaryInterceptor(HandlerInterceptor):
    """Wraps every call with one request and one response; streams (health Watch, reflection) pass untouched."""

    @abstractmethod
    async def around(self, answer: Callable[[], Awaitable[Any]], context: "Context", method: str) -> Any:
        """Call `answer` and return its result, and do whatever goes before and after.

        Args:
            answer: Answers the call.
            context: The call's context.
            method: The method's full name.
        """

    def wrap(self, handler: "Handler", method: str) -> "Handler":
        """Wrap the handler of a unary method."""
        if handler.unary_unary is None:
            return handler
        inner: Callable[..., Awaitable[Any]] = handler.unary_unary
        # Parsed within `around`, so that invalid bytes are an error like any other.
        parse = handler.request_deserializer or (lambda request: request)

        async def wrapped(request: Any, context: "Context") -> Any:
            return await self.around(lambda: inner(parse(request), context), context, method)

        return grpc.unary_unary_rpc_method_handler(wrapped, response_serializer=handler.response_serializer)

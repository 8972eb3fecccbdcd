"""Turns the errors of calls into gRPC statuses."""

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from serving.handlers import UnaryInterceptor, parts_of
from serving.statuses import abort

if TYPE_CHECKING:
    from serving.handlers import Context, Handler


class ErrorInterceptor(UnaryInterceptor):
    """Ends a call that raised an error with the status that `statuses.refuse` gives for it.

    For streams this covers only requests that cannot be parsed; the servicer reports other errors as items.

    Stream handlers that yield and those that write both become coroutine functions that return when the answers are
    written, so that outer interceptors see one kind.
    """

    def wrap(self, handler: "Handler", method: str) -> "Handler":
        """Wrap a method's handler."""
        if handler.unary_unary is not None or (parts := parts_of(handler)) is None:
            return super().wrap(handler, method)
        make, inner = parts
        parse, one_request = handler.request_deserializer, not handler.request_streaming

        async def wrapped(request: Any, context: "Context") -> None:
            try:
                answers = inner(parse(request) if parse and one_request else request, context)
                if inspect.isasyncgen(answers):
                    async for answer in answers:
                        await context.write(answer)
                else:
                    await answers
            except DecodeError as error:
                await abort(context, error, method)

        return make(wrapped, None if one_request else parse, handler.response_serializer)

    async def around(self, answer: Callable[[], Awaitable[Any]], context: "Context", method: str) -> Any:
        """Answer, or abort."""
        try:
            return await answer()
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: nothing but a status may leave
            await abort(context, error, method)

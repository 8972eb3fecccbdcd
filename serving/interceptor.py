"""Errors of unary calls leave the server as statuses."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from serving.statuses import abort
from serving.unary import UnaryInterceptor

if TYPE_CHECKING:
    from serving.unary import Context


class ErrorInterceptor(UnaryInterceptor):
    """Ends a call that raised with the status that `statuses.refuse` gives its error."""

    async def around(self, answer: Callable[[], Awaitable[Any]], context: "Context", method: str) -> Any:
        """Answer, or abort."""
        try:
            return await answer()
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: nothing but a status may leave
            await abort(context, error, method)

"""What an error becomes over gRPC: the one place where exceptions turn into status codes."""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from fcnseg.errors import ModelNotFoundError
from serving.converters import InvalidFieldError
from serving.unary import UnaryInterceptor

if TYPE_CHECKING:
    from serving.unary import Context

_log = logging.getLogger(__name__)

INTERNAL_ERROR = "internal error; the server's log tells more"


class ErrorInterceptor(UnaryInterceptor):
    """Maps errors to statuses.

    A field without a valid value is INVALID_ARGUMENT with a `google.rpc.BadRequest` that names it, an unknown model
    NOT_FOUND. Anything else is a fault of the server: it is logged whole, and the client gets a fixed text, since a
    message may name files.
    """

    async def around(self, answer: Callable[[], Awaitable[Any]], context: "Context", method: str) -> Any:
        """Answer, or abort with the status that the error maps to."""
        try:
            return await answer()
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: nothing but a status may leave
            await _abort(context, error, method)


async def _abort(context: "Context", error: Exception, method: str) -> NoReturn:
    if isinstance(error, InvalidFieldError):
        violation = BadRequest.FieldViolation(field=error.field, description=str(error))
        detail = AnyMessage()
        detail.Pack(BadRequest(field_violations=[violation]))
        code = grpc.StatusCode.INVALID_ARGUMENT
        status = rpc_status.to_status(Status(code=code.value[0], message=str(error), details=[detail]))
        await context.abort(code, str(error), status.trailing_metadata)
    if isinstance(error, ModelNotFoundError):
        await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
    _log.error("%s failed", method, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_ERROR)

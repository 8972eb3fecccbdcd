"""Turns exceptions into gRPC statuses: the only place that does."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from fcnseg.errors import ModelNotFoundError
from fcnseg.wire import ERROR_DOMAIN, STOPPING
from serving.errors import (
    AllowanceError,
    ForbiddenError,
    InvalidFieldError,
    NoTokenError,
    NotOpenedError,
    OverloadedError,
    OversizedMessageError,
    StoppingError,
    TooLateError,
)

if TYPE_CHECKING:
    from serving.handlers import Context

_log = logging.getLogger(__name__)

INTERNAL_ERROR = "internal error; the server's log tells more"
_NO_MESSAGE = "the request's bytes are not the message that the method takes; use stubs made from the server's contract"
_LONGEST_MESSAGE = 1000
# gRPC's own clients wait this long before they retry, and do not retry if it is negative:
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_NO_RETRY = -1


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered, as a client sees it.

    Attributes:
        code: The status code.
        message: One line for a user.
        field: The request's field that has no valid value, if it is about one.
        retry_after_s: After how many seconds to retry, if that helps.
    """

    code: grpc.StatusCode
    message: str
    field: str | None = None
    retry_after_s: float | None = None

    def trailing_metadata(self, patience_s: float | None = None) -> tuple[tuple[str, str | bytes], ...]:
        """Return the trailing metadata with details besides code and message, as messages of `google.rpc`.

        Args:
            patience_s: Seconds until the client's deadline; None if it has none. gRPC's clients are told not to retry
                beyond it: they would wait in vain, and report only the deadline instead of this error.
        """
        details: list[Message] = []
        if self.code is grpc.StatusCode.UNAVAILABLE:  # the transport's code too, where no server answers
            details.append(ErrorInfo(domain=ERROR_DOMAIN, reason=STOPPING))
        if self.field is not None:
            violation = BadRequest.FieldViolation(field=self.field, description=self.message)
            details.append(BadRequest(field_violations=[violation]))
        pushback: tuple[tuple[str, str], ...] = ()
        if self.retry_after_s is not None:
            milliseconds = round(self.retry_after_s * 1000)
            delay = Duration()
            delay.FromMilliseconds(milliseconds)
            details.append(RetryInfo(retry_delay=delay))
            in_time = patience_s is None or self.retry_after_s < patience_s
            pushback = ((_PUSHBACK_KEY, str(milliseconds if in_time else _NO_RETRY)),)
        if not details:
            return ()
        packed = [AnyMessage() for _ in details]
        for detail, message in zip(packed, details, strict=True):
            detail.Pack(message)
        status = Status(code=self.code.value[0], message=self.message, details=packed)
        return (*rpc_status.to_status(status).trailing_metadata, *pushback)


def refuse(error: Exception, what: str) -> Refusal:
    """Return the refusal for an error.

    A fault of the server is logged in full, and the client gets a fixed text, since a message may name files.

    Args:
        error: What was raised.
        what: What failed, for the log.
    """
    code, field, retry_after_s, message = grpc.StatusCode.INTERNAL, None, None, str(error)
    match error:
        case InvalidFieldError():
            code, field = grpc.StatusCode.INVALID_ARGUMENT, error.field
        case DecodeError():
            code = grpc.StatusCode.INVALID_ARGUMENT
            message = message if isinstance(error, OversizedMessageError) else _NO_MESSAGE
        case ModelNotFoundError():
            code = grpc.StatusCode.NOT_FOUND
        case NotOpenedError():
            code = grpc.StatusCode.FAILED_PRECONDITION
        case NoTokenError():
            code = grpc.StatusCode.UNAUTHENTICATED
        case ForbiddenError():
            code = grpc.StatusCode.PERMISSION_DENIED
        case OverloadedError() | AllowanceError():
            code, retry_after_s = grpc.StatusCode.RESOURCE_EXHAUSTED, error.retry_after_s
        case TooLateError():
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        case StoppingError():
            code = grpc.StatusCode.UNAVAILABLE
        case _:
            _log.error("%s failed", what, exc_info=error)
            message = INTERNAL_ERROR
    return Refusal(code, _shorten(message), field, retry_after_s)


async def abort(context: "Context", error: Exception, what: str) -> None:
    """End a call with the status of an error; trailing metadata that was set before is kept.

    Raises:
        grpc.aio.AbortError: Always.
    """
    refusal = refuse(error, what)
    trailing = (*(context.trailing_metadata() or ()), *refusal.trailing_metadata(context.time_remaining()))
    await context.abort(refusal.code, refusal.message, trailing)


def _shorten(message: str) -> str:
    """Truncate a message to fit into a status: gRPC takes 8 KB of metadata, and may write a byte as three."""
    data = message.encode()
    return message if len(data) <= _LONGEST_MESSAGE else f"{data[:_LONGEST_MESSAGE].decode(errors='ignore')}..."

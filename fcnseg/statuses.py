"""Turn gRPC statuses into the client's exceptions: the only place that does so."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from fcnseg.errors import (
    FieldViolation,
    InvalidRequestError,
    PermissionDeniedError,
    RemoteModelFileError,
    RemoteModelNotFoundError,
    RequestError,
    RequestTimeoutError,
    ServerOverloadedError,
    ServerUnavailableError,
    UnauthenticatedError,
    one_line,
)
from fcnseg.wire import ERROR_DOMAIN

# gRPC refuses too large messages, on either end, with the same status as an overloaded server.
_BEYOND_LIMIT = "message larger than max"
# gRPC's message for calls that are cancelled because their server stops.
_ENDED_WITH_SERVER = "Cancelling all calls"
_NO_HANDSHAKE = "handshake failed"
_CUT_OFF = "Socket closed"
_TOLD_AS_IT_IS: dict[grpc.StatusCode, Callable[[str], RequestError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: RemoteModelFileError,
    grpc.StatusCode.NOT_FOUND: RemoteModelNotFoundError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class FailedCall(Protocol):
    """A failed call, of the synchronous or the asynchronous API."""

    def code(self) -> grpc.StatusCode:
        """Return its status code."""

    def details(self) -> str | None:
        """Return the server's message."""

    def trailing_metadata(self) -> object:
        """Return the trailing metadata, which may have error details."""


@dataclass(frozen=True)
class Status:
    """How a call, or one image of a stream, ended.

    Attributes:
        code: The status code.
        message: One line.
        violations: The request's fields with invalid values.
        retry_after_s: When to ask again, in seconds.
        answered: Whether the status is known to come from a server of ours, not from gRPC on either end.
    """

    code: grpc.StatusCode
    message: str
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None
    answered: bool = False

    @classmethod
    def of_call(cls, call: FailedCall) -> "Status":
        """Return how a call ended."""
        bad, retry, info = _read_details(call)
        delay = retry.retry_delay if retry.HasField("retry_delay") else None
        return cls(
            call.code(),
            one_line(call.details() or ""),
            tuple(FieldViolation(v.field, v.description) for v in bad.field_violations),
            delay.seconds + delay.nanos / 1e9 if delay is not None else None,
            info.domain == ERROR_DOMAIN,
        )

    @classmethod
    def of_failure(cls, code: int, message: str, field_name: str) -> "Status":
        """Return how one image of a stream ended."""
        violations = (FieldViolation(field_name, message),) if field_name else ()
        status = _CODES.get(code, grpc.StatusCode.UNKNOWN)
        return cls(status, one_line(message), violations, answered=True)


def to_error(status: Status, server: str, timeout_s: float, image: str | None = None) -> RequestError:
    """Return the error that a status stands for.

    Args:
        status: The status.
        server: The server's address, for the message.
        timeout_s: How long the client waited for the answer, for the message.
        image: The image's path, for messages about images that cannot be read; None if the image is not a file.
    """
    field = status.violations[0].field if status.violations else None
    told = f"server {server}: {status.message}"
    if field == "encoded" and image is not None:
        told = f"image {image}: {told}"
    error: RequestError
    match status.code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            others = [f"{v.field}: {v.description}" for v in status.violations[1:]]
            error = InvalidRequestError("; ".join([told, *others]), status.violations)
        case code if code in _TOLD_AS_IT_IS:
            error = _TOLD_AS_IT_IS[code](told)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if _BEYOND_LIMIT in status.message:
            remedy = "send a smaller image or ask for less, or raise the limit of the end that it names"
            error = RequestError(f"{told}; {remedy}", status.code.name)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            error = ServerOverloadedError(told, status.retry_after_s)
        case grpc.StatusCode.UNAVAILABLE:
            error = ServerUnavailableError(told if status.answered else _tell_unavailable(status.message, server))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            error = RequestTimeoutError(
                f"server {server} did not answer within {timeout_s:g} s, retries included; see that it is running and"
                " not overloaded, or allow it more time"
            )
        case grpc.StatusCode.CANCELLED:
            error = RequestError(
                f"the request to server {server} was cancelled ({status.message}); send it again over an open client",
                status.code.name,
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            error = RequestError(
                f"the server at {server} is not one of 'fcnseg serve', or is older: {status.message}", status.code.name
            )
        case _:
            error = RequestError(told, status.code.name, field)
    return error


def _tell_unavailable(message: str, server: str) -> str:
    """Return why a server did not answer, and the remedy, from gRPC's message."""
    if message == _ENDED_WITH_SERVER:
        return f"server {server} was stopped before it had answered ({message}); ask again or go on with another"
    reach = "start one with 'fcnseg serve'"
    if _NO_HANDSHAKE in message:
        reach = (
            "client and server do not agree on TLS: check the authorities (--ca), or leave TLS out where it has none"
        )
    elif _CUT_OFF in message:
        reach += ", or use TLS, with a certificate of your own, where it asks for that"
    return f"no server answers at {server} ({message}); {reach}"


def _read_details(call: FailedCall) -> tuple[BadRequest, RetryInfo, ErrorInfo]:
    """Return the error details of a status; missing ones are empty."""
    bad, retry, info = BadRequest(), RetryInfo(), ErrorInfo()
    with suppress(ValueError, DecodeError):  # a proxy's trailer contradicts the status, or is broken
        status = rpc_status.from_call(call)
        for detail in status.details if status is not None else ():
            for known in (bad, retry, info):
                detail.Unpack(known)
    return bad, retry, info

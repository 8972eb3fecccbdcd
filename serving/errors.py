"""The reasons why the server does not answer a request; `statuses` turns them into gRPC statuses."""

from enum import StrEnum

from google.protobuf.message import DecodeError

from fcnseg.errors import FcnsegError, UsageError

_LONGEST_QUOTE = 100


def quote(text: str) -> str:
    """Return text of a client for use in a message: quoted and truncated."""
    return repr(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}...")


class InvalidFieldError(UsageError):
    """A request's field has no valid value.

    Args:
        field: The field, as in the contract, such as `raw.rgb`.
        message: One line for a user.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class OversizedMessageError(DecodeError):
    """A request's message is not parsed, since that would take too much memory; its text is one line for a user."""


class Reason(StrEnum):
    """Why an image that could be answered is refused, as a label of the metrics."""

    QUEUE_FULL = "queue_full"
    """The model's queue is full."""
    MEMORY = "memory"
    """The memory for images is full."""
    DEADLINE = "deadline"
    """The answer is expected after the deadline."""
    LATE = "late"
    """The image was admitted, but its deadline passed."""
    STOPPING = "stopping"
    """The server is stopping, or the model is being closed."""


class RefusedError(FcnsegError):
    """An image that could be answered is refused, for a reason that is not the image's fault.

    Args:
        message: One line for a user.
        reason: The reason, for the metrics.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class OverloadedError(RefusedError):
    """The server is overloaded: its queue or memory is full, or time does not suffice.

    Args:
        message: One line for a user.
        retry_after_s: After how many seconds there will probably be room.
        reason: The reason, for the metrics.
    """

    def __init__(self, message: str, retry_after_s: float, reason: Reason) -> None:
        super().__init__(message, reason)
        self.retry_after_s = retry_after_s


class AllowanceError(FcnsegError):
    """A token's limits are exceeded.

    Args:
        message: One line for a user.
        retry_after_s: After how many seconds to retry.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoTokenError(FcnsegError):
    """The caller gives no token, or none that the server knows."""


class ForbiddenError(FcnsegError):
    """The caller may not call the method."""


class NotOpenedError(FcnsegError):
    """A model's file cannot be opened, so that what was served before still is; the message names no path."""


class TooLateError(RefusedError):
    """The request's deadline passed before its answer was there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Reason.LATE)


class StoppingError(RefusedError):
    """The server is stopping, or the model is being closed, and accepts no more requests."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Reason.STOPPING)

"""Why the server does not answer a request; `statuses` says what each becomes over gRPC."""

from enum import StrEnum

from google.protobuf.message import DecodeError

from fcnseg.errors import FcnsegError, UsageError

_LONGEST_QUOTE = 100


def quote(text: str) -> str:
    """Return what a client sent as a message may show it: quoted, and not for ever."""
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
    """A request's message is not parsed, for the memory that this would take; its text is one line for a user."""


class Reason(StrEnum):
    """Why an image that could be answered is not, as metrics tell it."""

    QUEUE_FULL = "queue_full"
    """As many images of its model are under way as there may be."""
    MEMORY = "memory"
    """Images under way hold as many bytes as they may."""
    DEADLINE = "deadline"
    """Its answer would come after its deadline."""
    LATE = "late"
    """It was let in, and its deadline passed all the same."""
    STOPPING = "stopping"
    """The server, or its model, is going away."""


class RefusedError(FcnsegError):
    """An image that could be answered is not, for a reason that is not the image's.

    Args:
        message: One line for a user.
        reason: The reason, for the metrics.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class OverloadedError(RefusedError):
    """The server has as much to do, or to hold, as it may.

    Args:
        message: One line for a user.
        retry_after_s: When there will probably be room, in seconds.
        reason: What there is too much of, for the metrics.
    """

    def __init__(self, message: str, retry_after_s: float, reason: Reason) -> None:
        super().__init__(message, reason)
        self.retry_after_s = retry_after_s


class AllowanceError(FcnsegError):
    """A token's holder asks for more than the token's limits allow.

    Args:
        message: One line for a user.
        retry_after_s: When it may ask again, in seconds.
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
    """The server, or the model, is going away and takes nothing more."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Reason.STOPPING)

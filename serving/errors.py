"""Why the server does not answer a request; `statuses` says what each becomes over gRPC."""

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


class OverloadedError(FcnsegError):
    """The server has as much to do, or to hold, as it may.

    Args:
        message: One line for a user.
        retry_after_s: When there will probably be room, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoTokenError(FcnsegError):
    """The caller gives no token, or none that the server knows."""


class ForbiddenError(FcnsegError):
    """The caller may not call the method."""


class TooLateError(FcnsegError):
    """The request's deadline passed before its turn came."""


class StoppingError(FcnsegError):
    """The server, or the model, is going away and takes nothing more."""

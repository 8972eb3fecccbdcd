"""Every error that fcnseg raises on purpose.

FcnsegError
├── UsageError            an argument or option that cannot be used as given
├── ImageError            an image that cannot be read or is beyond a limit
│   └── ImageTooLargeError
├── MaskError             bytes that do not hold a class map
├── ModelFileError        a file that is not a valid fcnseg model
├── ModelNotFoundError    a model or version that is not there
├── DeviceError           the device asked for cannot run the model
├── DatasetError          images and masks that cannot be trained or evaluated on
├── ArchitectureError     a classifier that is unknown or cannot become convolutional
├── WeightsError          weights that cannot be had or do not fit
├── ParityError           two computations that must agree do not
├── PartialFailureError   a job that was finished except for the items that it names
└── RequestError          a server that could not be reached or refused a request
    ├── InvalidRequestError       a field without a valid value
    ├── RemoteModelNotFoundError  a model or version that the server does not hold
    ├── RemoteModelFileError      a model that the server cannot open
    ├── UnauthenticatedError      no token, or one that the server does not know
    ├── PermissionDeniedError     a request that its token does not allow
    ├── ServerOverloadedError     a server that has as much to do as it may
    ├── ServerUnavailableError    a server that does not answer, or is stopping
    └── RequestTimeoutError       an answer that did not come in time

A message says what was tried, the value, and the remedy, in one line. The class knows the exit code of the command
line; what an error becomes over gRPC is serving's business.
"""

from dataclasses import dataclass


class FcnsegError(Exception):
    """Base of every error raised on purpose; `str(error)` is one line fit for a user."""

    exit_code = 1


class UsageError(FcnsegError):
    """An argument or option cannot be used as given."""

    exit_code = 2


class ImageError(FcnsegError):
    """An image cannot be read."""

    exit_code = 2


class ImageTooLargeError(ImageError):
    """An image is beyond a limit on bytes or pixels."""


class MaskError(FcnsegError):
    """Bytes do not hold a class map, or not one of the shape they should."""

    exit_code = 2


class ModelFileError(FcnsegError):
    """A file is not a valid fcnseg model."""

    exit_code = 2


class ModelNotFoundError(FcnsegError):
    """A model or version is not there."""

    exit_code = 2


class DeviceError(FcnsegError):
    """The device that was asked for cannot run the model."""

    exit_code = 2


class DatasetError(FcnsegError):
    """Images and masks cannot be trained or evaluated on."""

    exit_code = 2


class ArchitectureError(FcnsegError):
    """A classifier is unknown, or cannot be made convolutional."""

    exit_code = 2


class WeightsError(FcnsegError):
    """Weights cannot be had, or do not fit the architecture."""

    exit_code = 2


class ParityError(FcnsegError):
    """Two computations that must agree do not, so their result is not used."""


class PartialFailureError(FcnsegError):
    """A job was finished except for the items that the message names."""


class RequestError(FcnsegError):
    """A server could not be reached, or refused a request.

    Args:
        message: One line for a user.
        code: The gRPC status code's name, such as `INTERNAL`.
        field: The request's field that the server named, where it named one.
    """

    def __init__(self, message: str, code: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        """Return how it is made again without its constructor, which wants more than the message."""
        return Exception.__new__, (type(self), *self.args), vars(self)


@dataclass(frozen=True)
class FieldViolation:
    """A field of a request that has no valid value.

    Attributes:
        field: The field, as in the contract, such as `raw.rgb`.
        description: Why, in one line.
    """

    field: str
    description: str


class InvalidRequestError(RequestError):
    """A request has a field without a valid value.

    Args:
        message: One line for a user.
        violations: The fields that the server named; the first is `field`.
    """

    exit_code = 2

    def __init__(self, message: str, violations: tuple[FieldViolation, ...] = ()) -> None:
        super().__init__(message, "INVALID_ARGUMENT", violations[0].field if violations else None)
        self.violations = violations


class RemoteModelNotFoundError(RequestError):
    """A model or version is not one of the server's."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message, "NOT_FOUND")


class RemoteModelFileError(RequestError):
    """A server cannot open a model's files; what it served before it still serves."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "FAILED_PRECONDITION")


class UnauthenticatedError(RequestError):
    """A server wants a token, and got none that it knows."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message, "UNAUTHENTICATED")


class PermissionDeniedError(RequestError):
    """A server does not let its caller do what was asked."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message, "PERMISSION_DENIED")


class ServerOverloadedError(RequestError):
    """A server has as much to do, or to hold, as it may.

    Args:
        message: One line for a user.
        retry_after_s: When the server expects to have room, in seconds; None where it does not say.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, "RESOURCE_EXHAUSTED")
        self.retry_after_s = retry_after_s


class ServerUnavailableError(RequestError):
    """A server does not answer, or is stopping."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "UNAVAILABLE")


class RequestTimeoutError(RequestError):
    """An answer did not come in time."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "DEADLINE_EXCEEDED")


def one_line(error: object, most: int | None = None) -> str:
    """Return what an error of another library says, as part of a message: on one line.

    Args:
        error: The error, or a text.
        most: The most characters; None for all of them.
    """
    return " ".join(str(error).split())[:most]

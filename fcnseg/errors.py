"""Every error that fcnseg raises on purpose.

FcnsegError
├── UsageError            an argument or option that cannot be used as given
├── ImageError            an image that cannot be read or is beyond a limit
│   └── ImageTooLargeError
├── MaskError             bytes that do not hold a class map
├── ModelFileError        a file that is not a valid fcnseg model
├── ModelNotFoundError    a model or version that does not exist
├── DeviceError           the device asked for cannot run the model
├── DatasetError          images and masks that cannot be trained or evaluated on
├── ArchitectureError     a classifier that is unknown or cannot become convolutional
├── WeightsError          weights that cannot be obtained or do not fit
├── ParityError           two computations that must agree do not
├── PartialFailureError   a job that was finished except for the items that it names
└── RequestError          a server that could not be reached or refused a request
    ├── InvalidRequestError       a field without a valid value
    ├── RemoteModelNotFoundError  a model or version that the server does not hold
    ├── RemoteModelFileError      a model that the server cannot open
    ├── UnauthenticatedError      no token, or one that the server does not know
    ├── PermissionDeniedError     a request that the server does not let its caller make
    ├── ServerOverloadedError     a server that has reached a limit on its load
    ├── ServerUnavailableError    a server that does not answer, or is stopping
    └── RequestTimeoutError       an answer that did not come in time

A message says in one line what was tried, the value, and the remedy. The class defines the exit code of the command
line; the package serving maps errors to gRPC statuses.
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
    """Bytes do not hold a class map, or one of an unexpected shape."""

    exit_code = 2


class ModelFileError(FcnsegError):
    """A file is not a valid fcnseg model."""

    exit_code = 2


class ModelNotFoundError(FcnsegError):
    """A model or version does not exist."""

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
    """Weights cannot be obtained, or do not fit the architecture."""

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
        field: The request's field that the server named as the cause; None if it named none.
    """

    def __init__(self, message: str, code: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        """Support pickling and copying without the constructor, which needs more arguments than the message."""
        return Exception.__new__, (type(self), *self.args), vars(self)


@dataclass(frozen=True)
class FieldViolation:
    """A field of a request with an invalid value.

    Attributes:
        field: The field's path in the protobuf contract, such as `raw.rgb`.
        description: Why the value is invalid, in one line.
    """

    field: str
    description: str


class InvalidRequestError(RequestError):
    """A request has a field without a valid value.

    Args:
        message: One line for a user.
        violations: The fields that the server named; the first one becomes `field`.
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
    """A server cannot open a model's files; it still serves the models that it served before."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "FAILED_PRECONDITION")


class UnauthenticatedError(RequestError):
    """A server requires a token, and received none that it knows."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message, "UNAUTHENTICATED")


class PermissionDeniedError(RequestError):
    """The server does not let the caller do what was asked for, whether the request has a token or not."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message, "PERMISSION_DENIED")


class ServerOverloadedError(RequestError):
    """A server has reached a limit on its load or memory.

    Args:
        message: One line for a user.
        retry_after_s: Seconds after which the server expects to have room; None if it does not say.
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
    """Return the message of another library's error on one line, for use within a message of ours.

    Args:
        error: The error, or a text.
        most: The most characters to keep; None keeps all.
    """
    return " ".join(str(error).split())[:most]

"""Wait until a server takes requests, by polling gRPC's health service.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md. The service's own message types are in a package that
only servers need; types with the same wire format replace them here.
"""

import time

from google.protobuf.wrappers_pb2 import Int32Value

from fcnseg.errors import RequestError, RequestTimeoutError, ServerUnavailableError

CHECK = "/grpc.health.v1.Health/Check"
"""The method; its answer has the wire format of an Int32Value."""
WHOLE_SERVER = b""
"""The request, which names no service and so asks for the whole server."""
PAUSE_S = 0.1
"""Seconds between two checks of a server that is not ready."""
_SERVING = 1


class Readiness:
    """The state of waiting for a server that is polled.

    Args:
        server: The server's address, for messages.
        timeout_s: How long to wait, in seconds.

    Attributes:
        timeout_s: The argument `timeout_s`.
    """

    def __init__(self, server: str, timeout_s: float) -> None:
        self._server = server
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s
        self._not_serving = False

    @property
    def left_s(self) -> float:
        """Seconds left to wait, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def is_told_by(self, health: Int32Value) -> bool:
        """Record a health check's answer, and tell whether the server is ready."""
        self._not_serving = health.value != _SERVING
        return not self._not_serving

    def require_more(self, error: RequestError) -> None:
        """Check, after a failed health check, whether another one may succeed.

        Raises:
            RequestError: The time is over, or the server cannot be polled.
        """
        if isinstance(error, RequestTimeoutError) and self._not_serving:
            raise RequestTimeoutError(
                f"server {self._server} answers, and was not ready within {self.timeout_s:g} s: it warms its models or"
                " is stopping; allow it more time"
            ) from error
        # The server is gone, or is closing its connections: another one may take its place.
        if not isinstance(error, ServerUnavailableError) and error.code != "CANCELLED":
            raise error
        self._not_serving = False

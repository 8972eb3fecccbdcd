"""Waiting for a server until it takes requests, as gRPC's health service tells.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md. Its own messages are in a package that only servers
need; others that are the same on the wire stand for them.
"""

import time

from google.protobuf.wrappers_pb2 import Int32Value

from fcnseg.errors import RequestError, RequestTimeoutError, ServerUnavailableError

CHECK = "/grpc.health.v1.Health/Check"
"""The method; it answers with what an Int32Value is on the wire."""
WHOLE_SERVER = b""
"""The request: no service is named."""
PAUSE_S = 0.1
"""How long a server that is not ready is left alone before it is asked again, in seconds."""
_SERVING = 1


class Readiness:
    """What is known of a server that is waited for, of which is asked again and again.

    Args:
        server: Its address, for messages.
        timeout_s: How long it is waited for, in seconds.

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
        """The seconds that are left, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def is_told_by(self, health: Int32Value) -> bool:
        """Tell from an answer whether the server is ready."""
        self._not_serving = health.value != _SERVING
        return not self._not_serving

    def require_more(self, error: RequestError) -> None:
        """Check that asking again may help, after asking has failed.

        Raises:
            RequestError: The time is over, or the server cannot be asked.
        """
        if isinstance(error, RequestTimeoutError) and self._not_serving:
            raise RequestTimeoutError(
                f"server {self._server} answers, and was not ready within {self.timeout_s:g} s: it warms its models or"
                " is stopping; allow it more time"
            ) from error
        # It has gone, or closes its connections: another may take its place.
        if not isinstance(error, ServerUnavailableError) and error.code != "CANCELLED":
            raise error
        self._not_serving = False

"""How long an answer is useful: until its deadline, or until its caller goes away."""

import time

from serving.errors import TooLateError


class Patience:
    """The patience of one caller, which long work checks from time to time; threads may share it.

    Args:
        deadline: Time on the monotonic clock after which the answer is useless.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._gone = False

    def end(self) -> None:
        """Record that the caller has gone away."""
        self._gone = True

    def require(self) -> None:
        """Check that there is still a caller to answer.

        Raises:
            TooLateError: The caller has gone away, or the deadline has passed.
        """
        if self._gone:
            raise TooLateError("the caller went away while its answer was written")
        if time.monotonic() >= self._deadline:
            raise TooLateError("the deadline passed while the answer was written")

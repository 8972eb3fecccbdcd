"""How long an answer is of use: until its deadline, or until its caller goes away."""

import time

from serving.errors import TooLateError


class Patience:
    """One caller's, which long work asks for on its way; threads may share it.

    Args:
        deadline: When the answer is of no use any more, on the monotonic clock.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._gone = False

    def end(self) -> None:
        """Note that the caller has gone away."""
        self._gone = True

    def require(self) -> None:
        """Go on while there is somebody to answer.

        Raises:
            TooLateError: The caller has gone away, or the deadline has passed.
        """
        if self._gone:
            raise TooLateError("the caller went away while its answer was written")
        if time.monotonic() >= self._deadline:
            raise TooLateError("the deadline passed while the answer was written")

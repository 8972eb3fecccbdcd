"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], bool], timeout_s: float = 60.0, tell: Callable[[], object] = lambda: "it did not happen"
) -> None:
    """Return when a condition holds, and fail where it does not within a time.

    Args:
        condition: What is to hold.
        timeout_s: How long it may take, in seconds.
        tell: Says what there is instead.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, tell()
        time.sleep(0.01)

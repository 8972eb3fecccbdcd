"""How signals end the server's process."""

import logging
import os
import signal
import threading

_log = logging.getLogger(__name__)


def end_at_once(number: int, _: object) -> None:
    """End the process by a signal; a container's first process, which signals do not end, by its exit code."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def end_when_overdue(after_s: float) -> None:
    """End the process after a time with exit code 0, where it has not ended by itself.

    Threads that decode, compute or open a model cannot be interrupted, and Python waits for them.
    """
    timer = threading.Timer(after_s, _end)
    timer.daemon = True
    timer.start()


def _end() -> None:
    _log.warning("work that cannot be interrupted has outlasted the grace period; the process ends without it")
    os._exit(0)

"""How signals end the server's process."""

import os
import signal


def end_at_once(number: int, _: object) -> None:
    """End the process by a signal; a container's first process, which signals do not end, by its exit code."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)

"""How many files, connections among them, the process may have open."""

import resource
from contextlib import suppress


def allow_most_open_files() -> None:
    """Raise the process's limit to what it may raise it to: many shells begin with 1024.

    A connection takes a file, and a server that may open no more takes no more clients.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS calls the limit infinite, and refuses as much
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

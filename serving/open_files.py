"""How many files, connections among them, the process may have open."""

import resource
from contextlib import suppress

_MOST = 2**31  # of what is infinite


def allow_most_open_files() -> int:
    """Raise the process's limit to what it may raise it to, and return the limit: many shells begin with 1024.

    A connection takes a file, and a server that may open no more takes no more clients.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS calls the limit infinite, and refuses as much
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if limit == resource.RLIM_INFINITY else min(limit, _MOST)

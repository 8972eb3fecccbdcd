"""The file descriptors 0, 1 and 2: what opens them where they are closed takes them for files of its own."""

import os

_STDERR = 2


def open_standard_streams() -> None:
    """Let those of stdin, stdout and stderr that are closed be /dev/null.

    Else a connection has such a number, and libuv ends the process when it is to close that.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(opened)

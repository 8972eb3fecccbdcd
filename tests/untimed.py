"""Lines of a server's log for people, without the time that each begins with."""

import re


def untimed(line: str) -> str:
    """Return a line without its time; it must have one."""
    found = re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line)
    assert found is not None, line
    return line[found.end() :]

"""How many scans a JPEG has: a decoder passes over the whole image for each, however little the scan holds.

ITU-T T.81, annex B, has the markers.
"""

import re

import numpy as np

MOST_SCANS = 100
"""A progressive file has about ten."""
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", 0xD9
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what is none of the data's own: no stuffing, restart or fill
_AT_ONCE = 1 << 20  # within which Python's lock is kept


def has_too_many_scans(data: bytes, start: int) -> bool:
    """Tell whether a JPEG has more than `MOST_SCANS`.

    Args:
        data: The file.
        start: Where the data of its first scan begins.
    """
    # Within a scan's data no marker occurs. What follows the image may be anything, a film of megabytes for one.
    return _count_starts(data, start) >= MOST_SCANS and _count_scans(data, start) > MOST_SCANS


def _count_starts(data: bytes, start: int) -> int:
    """Count what looks like the start of a scan, in a seventh of `data.count`'s time, which keeps Python's lock."""
    value = int.from_bytes(_START_OF_SCAN, "little")
    return sum(
        int(np.count_nonzero(np.frombuffer(data, "<u2", (len(data) - first) // 2, first) == value))
        for first in range(start, min(start + 2, len(data) - 1))
    )


def _count_scans(data: bytes, start: int) -> int:
    """Count the scans up to the end of the image, and no further than one too many."""
    scans, at = 1, start
    while scans <= MOST_SCANS and (at := _find_marker(data, at)) < len(data):
        marker = data[at + 1]
        if marker == _END_OF_IMAGE:
            break
        scans += data[at : at + 2] == _START_OF_SCAN
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return scans


def _find_marker(data: bytes, at: int) -> int:
    """Return where the next marker is; the file's length where there is none."""
    while at < len(data):
        found = _MARKER.search(data, at, at + _AT_ONCE)
        if found is not None:
            return found.start()
        at = min(at + _AT_ONCE, len(data)) - (at + _AT_ONCE < len(data))  # a marker may lie across the border
    return len(data)

"""Count the scans of a JPEG: a decoder processes the whole image for each scan, however little data it has.

ITU-T T.81, annex B, has the markers.
"""

import re

import numpy as np

MOST_SCANS = 100
"""A progressive file has about ten."""
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", 0xD9
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # not stuffing, restart or fill, which a scan's data may contain
_AT_ONCE = 1 << 20  # bytes searched at a time, while the GIL is held


def has_too_many_scans(data: bytes, start: int) -> bool:
    """Tell whether a JPEG has more than `MOST_SCANS`.

    Args:
        data: The file.
        start: Where the data of its first scan begins.
    """
    # A scan's data contain no marker. Anything may follow the image, such as a video of megabytes.
    return _count_starts(data, start) >= MOST_SCANS and _count_scans(data, start) > MOST_SCANS


def _count_starts(data: bytes, start: int) -> int:
    """Count what looks like the start of a scan, in a seventh of the time of `data.count`, which holds the GIL."""
    value = int.from_bytes(_START_OF_SCAN, "little")
    return sum(
        int(np.count_nonzero(np.frombuffer(data, "<u2", (len(data) - first) // 2, first) == value))
        for first in range(start, min(start + 2, len(data) - 1))
    )


def _count_scans(data: bytes, start: int) -> int:
    """Count the scans up to the end of the image, stopping at one too many."""
    scans, at = 1, start
    while scans <= MOST_SCANS and (at := _find_marker(data, at)) < len(data):
        marker = data[at + 1]
        if marker == _END_OF_IMAGE:
            break
        scans += data[at : at + 2] == _START_OF_SCAN
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return scans


def _find_marker(data: bytes, at: int) -> int:
    """Return the position of the next marker; the file's length if there is none."""
    while at < len(data):
        found = _MARKER.search(data, at, at + _AT_ONCE)
        if found is not None:
            return found.start()
        at = min(at + _AT_ONCE, len(data)) - (at + _AT_ONCE < len(data))  # a marker may cross the boundary
    return len(data)

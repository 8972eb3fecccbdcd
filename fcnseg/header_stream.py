"""An image file's bytes for Pillow, which may read its header in so many steps.

Pillow's readers of headers are written in Python and take some bytes at a time: a file of empty segments, or of nothing
between its marks, would keep them, and Python's lock, for a quarter of a second a megabyte.
"""

import io

MOST_READS = 50_000
"""Of a header; a camera's takes about a hundred, and each text of a PNG or segment of a JPEG three or four."""


class HeaderStream(io.BytesIO):
    """The bytes of a file whose header is read; `end_header` lifts the limit."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left: float = MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to so many bytes.

        Raises:
            ValueError: The header has taken too many reads.
        """
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"its header takes more than {MOST_READS} reads")
        return super().read(size)

    def end_header(self) -> None:
        """Let what follows be read in any number of steps."""
        self._left = float("inf")

"""An image file's bytes for Pillow, with a limit on the reads that its header takes.

Pillow's readers of headers are written in Python and take some bytes at a time: a file of empty segments, or of nothing
between its marks, would keep them, and Python's lock, for a quarter of a second a megabyte.
"""

import io

MOST_READS = 50_000
"""Of a header; a camera's takes about a hundred, and each text of a PNG three or four."""
MOST_JPEG_READS = 4000
"""Each segment takes four. Pillow joins those of EXIF one by one: the time grows as their number squared."""
MOST_JPEG_BYTES = 16 << 20


class HeaderStream(io.BytesIO):
    """The bytes of a file whose header is read; `end_header` lifts the limits.

    Args:
        data: The file's bytes.
        is_jpeg: Whether the narrower limits of JPEG hold.
    """

    def __init__(self, data: bytes, *, is_jpeg: bool = False) -> None:
        super().__init__(data)
        self._most_reads = MOST_JPEG_READS if is_jpeg else MOST_READS
        self._most_bytes = MOST_JPEG_BYTES if is_jpeg else len(data)
        self._reads = 0
        self._is_header = True

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to so many bytes.

        Raises:
            ValueError: The header is too long, or has taken too many reads.
        """
        if self._is_header:
            self._reads += 1
            if self._reads > self._most_reads:
                raise ValueError(f"its header takes more than {self._most_reads} reads")
            if self.tell() > self._most_bytes:
                raise ValueError(f"its header has more than {self._most_bytes} bytes")
        return super().read(size)

    def end_header(self) -> None:
        """Let what follows be read in any number of steps."""
        self._is_header = False

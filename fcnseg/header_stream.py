"""A stream of an image file's bytes for Pillow that limits the number of reads for the header.

Pillow parses headers in Python, a few bytes at a time: a file of empty segments, or with markers far apart, would
occupy it, and the GIL, for a quarter of a second per megabyte.
"""

import io

MOST_READS = 50_000
"""Most reads for a header; a camera's header takes about a hundred, and each text of a PNG three or four."""
MOST_JPEG_READS = 4000
"""Most reads for a JPEG header; a segment takes four. Pillow joins EXIF segments one by one, in quadratic time."""
MOST_JPEG_BYTES = 16 << 20


class HeaderStream(io.BytesIO):
    """A file's bytes, with limits on reading its header until `end_header` lifts them.

    Args:
        data: The file's bytes.
        is_jpeg: Whether the tighter limit for JPEG applies.
    """

    def __init__(self, data: bytes, *, is_jpeg: bool = False) -> None:
        super().__init__(data)
        self._most_reads = MOST_JPEG_READS if is_jpeg else MOST_READS
        self._most_bytes = MOST_JPEG_BYTES if is_jpeg else len(data)
        self._reads = 0
        self._is_header = True

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes.

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
        """Lift the limits for the rest of the file."""
        self._is_header = False

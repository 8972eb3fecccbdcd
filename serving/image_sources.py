"""The sources of a request's pixels: headers are read before anything is allocated, pixels decoded once admitted."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import ImageError
from fcnseg.images import EncodedImage, ImageLimits, require_within
from serving.errors import InvalidFieldError

COPIES = 3
"""How often the bytes of a request's field are held: as received, in the parsed message, and as a Python object."""


class Source(Protocol):
    """A request's image before it is decoded.

    Attributes:
        field: The request's field that holds it, for messages.
        byte_count: Bytes that it takes now, including all copies.
        instant: Whether opening and decoding are too quick to be worth a thread.
    """

    @property
    def field(self) -> str: ...  # noqa: D102
    @property
    def byte_count(self) -> int: ...  # noqa: D102
    @property
    def instant(self) -> bool: ...  # noqa: D102

    def open(self, limits: ImageLimits) -> tuple[int, int]:
        """Check the image's size against the limits, and return it as (height, width).

        Raises:
            InvalidFieldError: It cannot be read or is beyond a limit.
        """

    def decode(self) -> NDArray[np.uint8]:
        """Return the image as (H, W, 3) uint8 RGB; it has been opened.

        Raises:
            InvalidFieldError: It cannot be read.
        """


class EncodedSource:
    """The bytes of an image file."""

    instant = False

    def __init__(self, data: bytes, field: str = "encoded") -> None:
        self.field = field
        self.byte_count = COPIES * len(data)
        self._data: bytes | None = data
        self._image: EncodedImage | None = None

    def open(self, limits: ImageLimits) -> tuple[int, int]:
        """Read the header, once."""
        if self._image is None:
            assert self._data is not None, "what has been decoded is not opened again"  # noqa: S101
            try:
                self._image = EncodedImage(self._data, limits)
            except ImageError as error:
                raise InvalidFieldError(self.field, str(error)) from error
        return self._image.size

    def decode(self) -> NDArray[np.uint8]:
        """Decode the file, once, and release its bytes."""
        image = self._image
        assert image is not None, "open comes before decode"  # noqa: S101
        self._data = self._image = None
        try:
            return image.decode()
        except ImageError as error:
            raise InvalidFieldError(self.field, str(error)) from error


class RawSource:
    """Red, green and blue bytes, row by row.

    Args:
        rgb: The bytes.
        height: Rows.
        width: Columns.
        field: The request's field; its parts are `height`, `width` and `rgb`.
        byte_count: Bytes that they take now, if the request also holds them in another form.
    """

    instant = True

    def __init__(
        self, rgb: bytes | memoryview, height: int, width: int, field: str = "raw", byte_count: int | None = None
    ) -> None:
        self.field = field
        self.byte_count = COPIES * len(rgb) if byte_count is None else byte_count
        self._rgb = rgb
        self._size = height, width

    def open(self, limits: ImageLimits) -> tuple[int, int]:
        """Check that the bytes are those of the size."""
        height, width = self._size
        for name, size in (("height", height), ("width", width)):
            if size == 0:
                raise InvalidFieldError(f"{self.field}.{name}", f"a raw image's {name} is 0; it must be at least 1")
        try:
            require_within(limits, height, width, "the raw image")
        except ImageError as error:
            raise InvalidFieldError(self.field, str(error)) from error
        expected = height * width * 3
        if len(self._rgb) != expected:
            raise InvalidFieldError(
                f"{self.field}.rgb",
                f"a raw image of {height} x {width} pixels has {expected} bytes of RGB; got {len(self._rgb)}",
            )
        return self._size

    def decode(self) -> NDArray[np.uint8]:
        """Return the bytes as an array of pixels, without a copy."""
        return np.frombuffer(self._rgb, np.uint8).reshape(*self._size, 3)

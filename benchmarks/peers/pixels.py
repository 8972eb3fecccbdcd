"""An image as bytes over HTTP, for peers without tensors: height and width (uint32, little-endian), then pixels."""

import numpy as np
from numpy.typing import NDArray

_HEADER = np.dtype("<u4")


def write_pixels(image: NDArray[np.uint8]) -> bytes:
    """Write an image, (H, W, 3) uint8."""
    return np.array(image.shape[:2], _HEADER).tobytes() + image.tobytes()


def read_pixels(body: bytes) -> NDArray[np.uint8]:
    """Read an image, (H, W, 3) uint8; a view of the bytes."""
    height, width = np.frombuffer(body, _HEADER, 2)
    return np.frombuffer(body, np.uint8, offset=2 * _HEADER.itemsize).reshape(height, width, 3)

"""Synthetic images that cost as much as photographs, for measurements without one."""

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnseg.images import DEFAULT_LIMITS, require_within

_CELL = 16
_NOISE = 6


def sample_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return an image of soft patches and some noise, whose JPEG is about as large as a photograph's.

    Returns:
        (H, W, 3) uint8 RGB, the same for the same arguments.

    Raises:
        ImageTooLargeError: The size exceeds the limits on images.
    """
    require_within(DEFAULT_LIMITS, height, width, "the image to measure with")
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (-(-height // _CELL) + 1, -(-width // _CELL) + 1, 3), dtype=np.uint8)
    smooth = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(-_NOISE, _NOISE + 1, (height, width, 3))
    image: NDArray[np.uint8] = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return image

"""Scale samples of more than 8 bits to 0..255.

16-bit samples are reduced to their high byte, as in libpng for 16-bit colour (12-bit TIFF: the high 8 of the 12 bits).
32-bit and float samples have no standard white level: it is taken as the first of 1 (float only), 255, 65535 and
2^32 - 1 that no sample exceeds. Black is 0.
"""

import math

import numpy as np
from numpy.typing import NDArray

_SAMPLES_AT_ONCE = 1 << 16


def to_8_bits(samples: NDArray[np.generic], bits: int, largest: float | None = None) -> NDArray[np.uint8]:
    """Scale samples of more than 8 bits to 0..255 by the module's rules.

    Args:
        samples: Integers or floats, of any shape.
        bits: Bits per sample.
        largest: The largest finite sample of the whole image, if `samples` are a part of it.
    """
    if bits < 32:
        return (samples.astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    whites = (255, 65535, 2**32 - 1) if np.issubdtype(samples.dtype, np.integer) else (1, 255, 65535, 2**32 - 1)
    largest = largest_sample(samples) if largest is None else largest
    white = next((white for white in whites if largest <= white), largest)
    grey = np.empty(samples.shape, np.uint8)
    for band in _bands(samples):
        grey[band] = np.clip(_finite(samples[band]) * (255 / white), 0, 255)
    return grey


def largest_sample(samples: NDArray[np.generic]) -> float:
    """Return the largest sample, counting infinite samples and NaN as 0."""
    return max(float(_finite(samples[band]).max()) for band in _bands(samples))


def _bands(samples: NDArray[np.generic]) -> list[slice]:
    """Split samples into bands of rows, because the arithmetic takes several times their memory."""
    step = max(1, _SAMPLES_AT_ONCE // max(1, math.prod(samples.shape[1:])))
    return [slice(top, top + step) for top in range(0, samples.shape[0], step)]


def _finite(samples: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.nan_to_num(samples.astype(np.float64), posinf=0.0, neginf=0.0)

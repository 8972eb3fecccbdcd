"""Photographs for measuring nets: they are part of scikit-image, and in the public domain (CC0)."""

import cv2
import numpy as np
import skimage.data
import torch
from torch import Tensor

_NAMES = ("chelsea", "coffee", "astronaut", "rocket")
PHOTOGRAPHS = len(_NAMES)


def photographs(count: int, size: tuple[int, int], channels: int = 3) -> Tensor | None:
    """Return some photographs, each normalised to mean 0 and standard deviation 1.

    Args:
        count: How many, at most `PHOTOGRAPHS`.
        size: (height, width) to which they are stretched.
        channels: 3 for RGB, 1 for grey.

    Returns:
        (count, channels, height, width) float32; None for other numbers of channels.
    """
    if channels not in {1, 3}:
        return None
    images = []
    for name in _NAMES[:count]:
        pixels = cv2.resize(getattr(skimage.data, name)(), size[::-1], interpolation=cv2.INTER_AREA)
        if channels == 1:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
        values = pixels.astype(np.float32)
        images.append((values - values.mean()) / values.std())
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

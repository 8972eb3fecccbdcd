"""Images to put into folders."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return pixels of random colours."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def touch(folder: Path, *names: str) -> None:
    """Write a small image under each name, whatever its suffix."""
    buffer = io.BytesIO()
    Image.fromarray(noise(5, 7)).save(buffer, "PNG")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(buffer.getvalue())


def save(path: Path, size: tuple[int, int] = (6, 4)) -> Path:
    """Write a black image of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def write_noise(folder: Path, count: int) -> list[str]:
    """Write images of different sizes and random colours, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:03d}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.fromarray(noise(10 + i % 7, 30 - i % 5, i)).save(folder / name)
    return names

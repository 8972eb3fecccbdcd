"""Images, their files, and folders of them."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return pixels of random colours."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_images(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return (count, height, width, 3) pixels of random colours."""
    return np.random.default_rng(height * width).integers(0, 256, (count, height, width, 3), np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the bytes of an image's file, by Pillow's name for the kind and its options."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def touch(folder: Path, *names: str) -> None:
    """Write a small image under each name, whatever its suffix."""
    data = encoded(Image.fromarray(noise(5, 7)), "PNG")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


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

"""Images to ask for, in many formats and ever new shapes, with their answers as the offline model gives them."""

import io
import random
import threading
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcnseg import images
from fcnseg.segmenter import Segmenter
from fcnseg.types import Segmentation

FORMATS = ("raw", "jpeg", "png", "webp", "tiff", "bmp", "palette", "grey")
_LONGEST_SIDE = 400
_LARGE = (320, 480)
_LONG = (2, 3000)
_POOL = 64


class Sample:
    """One image and its offline answers.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        form: How it is sent, one of `FORMATS`.

    Attributes:
        source: What a client sends: a file's bytes, or the pixels.
        form: How it is sent.
    """

    def __init__(self, pixels: NDArray[np.uint8], form: str) -> None:
        self.form = form
        self.source: bytes | NDArray[np.uint8] = pixels if form == "raw" else _write(pixels, form)
        self._answers: dict[Segmenter, Segmentation] = {}
        self._computing = threading.Lock()

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """What the source decodes to."""
        return images.decode(self.source) if isinstance(self.source, bytes) else self.source

    def answer(self, segmenter: Segmenter) -> Segmentation:
        """Return the offline answer, with confidence; each is computed once."""
        with self._computing:
            if segmenter not in self._answers:
                self._answers[segmenter] = segmenter.segment(self.source, confidence=True)
            return self._answers[segmenter]


class Pool:
    """Samples of random shapes, of which each draw may replace one by another: old answers save work, new shapes come.

    Args:
        rng: Decides shapes, formats and contents.
        renewed: Share of draws that make a new sample.
    """

    def __init__(self, rng: random.Random, renewed: float = 0.03) -> None:
        self._rng = rng
        self._renewed = renewed
        self._drawing = threading.Lock()
        # One of each format first, so that even a short soak sends them all.
        self._samples = [_make(rng, FORMATS[i % len(FORMATS)]) for i in range(_POOL)]

    def draw(self) -> Sample:
        """Return a sample."""
        with self._drawing:
            place = self._rng.randrange(_POOL)
            if self._rng.random() < self._renewed:
                self._samples[place] = _make(self._rng, self._rng.choice(FORMATS))
            return self._samples[place]


def _make(rng: random.Random, form: str) -> Sample:
    height, width = _shape(rng)
    cells = np.random.default_rng(rng.getrandbits(32)).integers(
        0, 256, (1 + height // 24, 1 + width // 24, 3), np.uint8
    )
    patches = cv2.resize(cells, (width, height), interpolation=rng.choice([cv2.INTER_NEAREST, cv2.INTER_LINEAR]))
    return Sample(np.ascontiguousarray(patches, np.uint8), form)


def _shape(rng: random.Random) -> tuple[int, int]:
    """Return a (height, width), mostly small, sometimes large, sometimes a long strip."""
    kind = rng.random()
    if kind < 0.04:
        return _LARGE
    if kind < 0.08:
        return _LONG if rng.random() < 0.5 else _LONG[::-1]
    height, width = (round(_LONGEST_SIDE ** rng.random()) for _ in range(2))
    return height, width


def _write(pixels: NDArray[np.uint8], form: str) -> bytes:
    image, file = Image.fromarray(pixels), io.BytesIO()
    if form == "palette":
        image.quantize(16).save(file, "png")
    elif form == "grey":
        image.convert("L").save(file, "jpeg", quality=90)
    else:
        image.save(file, form, **({"quality": 90} if form in {"jpeg", "webp"} else {}))
    return file.getvalue()

"""The ceiling of a server: session.run in a plain loop, on one photograph; and what its codecs take beside it."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from reporting import ROOT
from session import open_session
from skimage import data

from fcnseg import images, masks
from fcnseg.masks import Encoding
from fcnseg.types import LabelMap

SMALL = ROOT / "results" / "camvid-fcn8s.onnx"
"""The trained net; the heavy one is an FCN-8s of ResNet-50 with random weights."""
HEIGHT, WIDTH = 360, 480

_Result = TypeVar("_Result")


def photograph(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 RGB."""
    photo: NDArray[np.uint8] = cv2.resize(data.chelsea(), (width, height), interpolation=cv2.INTER_AREA)
    return photo


def codec_seconds(jpeg: bytes, class_map: NDArray[np.uint8], encoding: Encoding, label_map: LabelMap) -> float:
    """CPU seconds that one core takes to decode an image and to encode its mask; the median of 50."""
    found = []
    for _ in range(50):
        began = time.thread_time()
        images.decode(jpeg)
        masks.encode(class_map, encoding, label_map)
        found.append(time.thread_time() - began)
    return statistics.median(found)


class Loop:
    """session.run in a plain loop."""

    def __init__(self, model: Path, threads: int, photo: NDArray[np.uint8], *, confidence: bool = False) -> None:
        self._session = open_session(model, threads)
        self._feed = {"image": photo[None], "with_confidence": np.array(confidence)}
        self.class_map: NDArray[np.uint8] = self._session.run(None, self._feed)[0][0]

    def run(self) -> None:
        """Run the model once."""
        self._session.run(None, self._feed)

    def around(self, seconds: float, load: Callable[[float], _Result]) -> tuple[list[float], _Result]:
        """Seconds of each run, half of them before the load and half after, which is told their mean; and its result.

        What else the machine does changes within seconds, for both sides.
        """
        before = self._times(seconds / 2)
        result = load(statistics.fmean(before))
        return before + self._times(seconds / 2), result

    def _times(self, seconds: float) -> list[float]:
        found = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            self.run()
            found.append(time.perf_counter() - began)
        return found

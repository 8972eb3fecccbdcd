"""The ceiling of a server: session.run in a plain loop, on one photograph."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from session import open_session
from skimage import data

HEIGHT, WIDTH = 360, 480

_Result = TypeVar("_Result")


def photograph() -> NDArray[np.uint8]:
    """(HEIGHT, WIDTH, 3) uint8 RGB."""
    return cv2.resize(data.chelsea(), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.uint8)


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

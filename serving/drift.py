"""What a model answers, summed up: a share or a confidence that moves tells that its images have changed."""

import threading
from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnseg.types import ClassArea


class Drift:
    """Class shares and mean confidences of a model's answers, each image counting alike; threads may share it.

    Takes only what was computed for an answer anyway.

    Attributes:
        shares: For each class seen, by name, the sum over images of its share of the pixels, each in (0, 1].
        confidences: Images whose confidence map was wanted.
        confidence: Sum over those of the mean confidence, each 0 to 1.
    """

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self.confidences = 0
        self.confidence = 0.0
        self._lock = threading.Lock()

    def add_areas(self, areas: Iterable[ClassArea]) -> None:
        """Take in the areas of an image's classes."""
        with self._lock:
            for area in areas:
                self.shares[area.info.name] = self.shares.get(area.info.name, 0.0) + area.fraction

    def add_confidence(self, confidence: NDArray[np.uint8]) -> None:
        """Take in an image's confidence map, (H, W) uint8."""
        mean = cv2.mean(confidence)[0] / 255
        with self._lock:
            self.confidences += 1
            self.confidence += mean

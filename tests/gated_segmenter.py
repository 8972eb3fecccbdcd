"""A real segmenter behind a gate, to see what happens while a run is under way."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnseg.engine import Engine, EngineOptions
from fcnseg.segmenter import Segmenter
from fcnseg.types import Segmentation
from serving.registry import ModelRegistry
from serving.served_model import ModelConfig
from tests.running_server import CPU_CONFIG


class GatedSegmenter(Segmenter):
    """Tells how many runs have begun, and waits for a gate within each.

    Attributes:
        begun: Released when a run begins.
        batches: The images of every run that has begun.
        ways: Of every run that has begun, whether it was to leave threads to others.
        gate: Runs go on when it is set.
    """

    def __init__(self, path: Path, options: EngineOptions = CPU_CONFIG.options) -> None:
        super().__init__(Engine(path, "cpu", options))
        self.begun = threading.Semaphore(0)
        self.batches: list[list[NDArray[np.uint8]]] = []
        self.ways: list[bool] = []
        self.gate = threading.Event()

    def segment_prepared(
        self,
        images: Sequence[NDArray[np.uint8]],
        sizes: Sequence[tuple[int, int]],
        *,
        confidence: bool = False,
        heatmap: bool = True,
        beside: bool = False,
    ) -> list[Segmentation]:
        """Segment a batch when the gate is open."""
        self.batches.append(list(images))
        self.ways.append(beside)
        self.begun.release()
        self.wait()
        return super().segment_prepared(images, sizes, confidence=confidence, heatmap=heatmap, beside=beside)

    def wait(self) -> None:
        """Wait for the gate."""
        assert self.gate.wait(60)


def registry_of(segmenter: Segmenter, path: Path, config: ModelConfig = CPU_CONFIG) -> ModelRegistry:
    """Return a registry whose one model, opened at `path`, is run by a segmenter."""
    return ModelRegistry([path], config, lambda *_args, **_options: segmenter)

"""One thread per model: where requests wait for their turn, and where batching will go."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcnseg.segmenter import Segmenter
from fcnseg.types import Segmentation


@dataclass(frozen=True, eq=False)
class Executed:
    """An answer and what it took.

    Attributes:
        segmentation: The answer.
        queue_ms: Milliseconds from submission to the start of the inference.
        infer_ms: Milliseconds of the inference.
    """

    segmentation: Segmentation
    queue_ms: float
    infer_ms: float


class ModelExecutor:
    """Runs one model's inferences one after another, off the event loop.

    Args:
        segmenter: The model.
        name: Names the thread, for logs and debuggers.
    """

    def __init__(self, segmenter: Segmenter, name: str) -> None:
        self._segmenter = segmenter
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"infer-{name}")

    async def segment(self, image: NDArray[np.uint8]) -> Executed:
        """Segment an image, (H, W, 3) uint8 RGB, when its turn comes.

        When the awaiting task is cancelled (the client gave up, or its deadline passed) while the image still waits,
        its inference is never run; one that has started is finished and its answer dropped.
        """
        submitted = time.perf_counter()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, image, submitted)

    def close(self) -> None:
        """Drop what waits, and wait for the inference that runs."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, image: NDArray[np.uint8], submitted: float) -> Executed:
        started = time.perf_counter()
        segmentation = self._segmenter.segment(image)
        ended = time.perf_counter()
        return Executed(segmentation, (started - submitted) * 1000, (ended - started) * 1000)

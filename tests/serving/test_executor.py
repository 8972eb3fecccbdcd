import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnseg.engine import Engine
from fcnseg.segmenter import Segmenter, load
from serving.executor import ModelExecutor
from tests.tiny_model import write_tiny_model

IMAGE = np.full((4, 4, 3), (0, 255, 0), np.uint8)


async def test_answers_come_from_one_thread_that_is_not_the_event_loops(tiny_model: Path) -> None:
    threads = []

    class Watched(Segmenter):
        def canonical_shape(self, image: NDArray[np.uint8]) -> tuple[int, int]:
            threads.append(threading.get_ident())
            return super().canonical_shape(image)

    executor = ModelExecutor(Watched(Engine(tiny_model, "cpu", 1)), "watched")
    answers = await asyncio.gather(*(executor.segment(IMAGE) for _ in range(5)))
    executor.close()
    assert all((a.segmentation.class_map == 1).all() for a in answers)
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_waiting_is_told_apart_from_inference(tmp_path: Path) -> None:
    executor = ModelExecutor(load(write_tiny_model(tmp_path / "slow.onnx", work_rounds=1000), "cpu", 1), "slow")
    first, second = await asyncio.gather(executor.segment(IMAGE), executor.segment(IMAGE))
    executor.close()
    assert first.queue_ms < first.infer_ms / 2
    assert second.queue_ms > first.infer_ms / 2


async def test_an_error_of_the_model_reaches_its_caller_alone(tmp_path: Path) -> None:
    executor = ModelExecutor(load(write_tiny_model(tmp_path / "broken.onnx", fails=True), "cpu", 1), "broken")
    for _ in range(2):
        with pytest.raises(Exception, match="Reshape"):
            await executor.segment(IMAGE)
    executor.close()

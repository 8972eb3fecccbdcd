from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from fcnseg.bound_run import run_bound
from fcnseg.cuda_copies import CudaCopies
from fcnseg.specialised_model import write_specialised
from tests.gpu import needs_gpu
from tests.tiny_model import write_tiny_model


@pytest.mark.parametrize("class_count", [3, 300])
@pytest.mark.parametrize("confidence", [False, True])
def test_a_bound_run_answers_as_a_plain_one(tmp_path: Path, class_count: int, *, confidence: bool) -> None:
    model, path = write_tiny_model(tmp_path / "m.onnx", class_count=class_count), tmp_path / "specialised.onnx"
    write_specialised(memoryview(model.read_bytes()), path, confidence=confidence)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for seed, shape in enumerate([(1, 20, 30), (3, 9, 7), (1, 20, 30)]):
        images = np.random.default_rng(seed).integers(0, 256, (*shape, 6), np.uint8)[..., ::2]  # not contiguous
        found, expected = run_bound(session, "cpu", None, images, names), session.run(names, {"image": images})
        for ours, plain in zip(found, expected, strict=True):
            assert ours.dtype == plain.dtype
            np.testing.assert_array_equal(ours, plain)


@needs_gpu
@pytest.mark.parametrize("count", [0, 1, 1000, (16 << 20) + 5])
def test_what_was_copied_to_a_gpu_comes_back(count: int) -> None:
    copies = CudaCopies(0)
    memory = onnxruntime.OrtValue.ortvalue_from_shape_and_type([max(1, count)], np.uint8, "cuda", 0)
    source = np.random.default_rng(0).integers(0, 256, count, np.uint8)
    copies.upload([source], memory.data_ptr())
    (found,) = copies.download([(memory.data_ptr(), (count,), np.dtype(np.uint8))])
    np.testing.assert_array_equal(found, source)

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from fcnseg.devices import FATAL_ONLY
from fcnseg.engine import Engine
from fcnseg.specialised_model import write_specialised
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent.parent
TRAINED = {
    "golden": ROOT / "tests" / "golden" / "scenes-fcn8s.onnx",
    "camvid": ROOT / "results" / "camvid-fcn8s.onnx",
}
SHAPE = (2, 97, 131)
# What CUDA graphs cannot record: branches, and shapes that depend on data.
UNRECORDABLE = {"If", "Loop", "Scan", "NonZero", "Unique", "Compress"}
ON_SIZES = {"Shape", "Size", "Range"}


@pytest.fixture(scope="module", params=["tiny", "tiny, at cells", *TRAINED])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param in TRAINED:
        return TRAINED[request.param]
    classes = 70 if "cells" in request.param else 3
    return write_tiny_model(tmp_path_factory.mktemp("model") / "m.onnx", class_count=classes)


def specialised(model: Path, path: Path, *, confidence: bool) -> Path:
    write_specialised(memoryview(model.read_bytes()), path, confidence=confidence)
    return path


def open_session(
    path: Path, shape: tuple[int, ...] = (), optimised: Path | None = None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    for name, size in zip("NHW", shape, strict=False):
        options.add_free_dimension_override_by_name(name, size)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def some_images() -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    images[:, :40] = 127  # a region of one class, and borders
    return images


@pytest.mark.parametrize("fixed", [False, True], ids=["of any size", "of one size"])
@pytest.mark.parametrize("confidence", [False, True], ids=["plain", "with confidence"])
def test_a_specialised_model_answers_as_the_model_does(
    model: Path, tmp_path: Path, *, confidence: bool, fixed: bool
) -> None:
    session = open_session(specialised(model, tmp_path / "m.onnx", confidence=confidence), SHAPE if fixed else ())
    images = some_images()
    answers = session.run(None, {"image": images})
    expected = Engine(model, "cpu").run(images, confidence=confidence)
    assert np.array_equal(answers[0], expected.class_map)
    np.testing.assert_allclose(answers[1], expected.heatmap, rtol=0, atol=1e-5 * np.ptp(expected.heatmap))
    if expected.confidence is None:
        assert len(answers) == 2
    else:
        assert np.abs(answers[2].astype(int) - expected.confidence).max() <= 1  # a step of rounding


@pytest.mark.parametrize("confidence", [False, True])
def test_a_specialised_model_takes_an_image_and_nothing_else(model: Path, tmp_path: Path, *, confidence: bool) -> None:
    session = open_session(specialised(model, tmp_path / "m.onnx", confidence=confidence))
    assert [node.name for node in session.get_inputs()] == ["image"]
    assert session.get_overridable_initializers() == []
    assert [node.name for node in session.get_outputs()] == ["class_map", "heatmap", *(["confidence"] * confidence)]


@pytest.mark.parametrize("confidence", [False, True])
def test_of_one_size_it_has_only_nodes_that_cuda_graphs_can_record(
    model: Path, tmp_path: Path, *, confidence: bool
) -> None:
    path = specialised(model, tmp_path / "m.onnx", confidence=confidence)
    open_session(path, SHAPE, tmp_path / "optimised.onnx")
    found = operators(tmp_path / "optimised.onnx")
    assert found
    assert not found & (UNRECORDABLE | ON_SIZES)


def test_what_only_confidences_need_is_left_out(tmp_path: Path) -> None:
    only_confidences = {"Round", "ReduceMax"}
    for name, model in TRAINED.items():
        plain = specialised(model, tmp_path / f"{name}-plain.onnx", confidence=False)
        asked = specialised(model, tmp_path / f"{name}-asked.onnx", confidence=True)
        assert only_confidences <= operators(asked)
        assert not only_confidences & operators(plain)

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import fcnseg
from fcnseg.engine import Engine
from fcnseg.errors import ParityError, UsageError
from fcnseg.layers import count_parameters
from fcnseg.model_file import read_model_info
from fcnseg.types import LabelMap
from tests.training.small_nets import Pooled, Residual, seeded
from tests.training.test_model import CLASSES, VggLike, fcn_model, heatmap_model
from training import export as exporting
from training.export import export
from training.layers import derive_layers
from training.model import SegmentationModel

SIZES = [(1, 1), (5, 200), (64, 64), (97, 131), (150, 61)]
LABELS = LabelMap.from_names([f"class {i}" for i in range(CLASSES)])


@pytest.fixture(scope="module")
def fcn() -> SegmentationModel:
    return fcn_model(seeded(Residual), (64, 64))


@pytest.fixture(scope="module")
def fcn_file(fcn: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fcn") / "fcn.onnx"
    export(fcn, LABELS, path, metrics={"mean_iou": 0.5}, data_fingerprint="f" * 64)
    return path


def random_images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (count, height, width, 3), np.uint8)


def check_answers(model: SegmentationModel, path: Path) -> None:
    engine = Engine(path, "cpu")
    for height, width in SIZES:
        images = random_images(2, height, width)
        output = engine.run(images, confidence=True)
        with torch.no_grad():
            class_map, heatmap, confidence = (t.numpy() for t in model(torch.from_numpy(images)))
        spread = np.ptp(heatmap) + 1e-9
        assert np.abs(output.heatmap - heatmap).max() / spread < 1e-5
        assert (output.class_map != class_map).mean() < 1e-3
        assert output.confidence is not None
        assert np.abs(output.confidence.astype(int) - confidence).max() <= 1


def test_the_file_answers_as_the_model_does_at_any_size(fcn: SegmentationModel, fcn_file: Path) -> None:
    check_answers(fcn, fcn_file)


def test_leading_padding_is_in_the_graph(tmp_path: Path) -> None:
    model = fcn_model(seeded(VggLike), (128, 128), "fcn16s")
    assert model.geometry.y.lead > 0
    export(model, LABELS, tmp_path / "vgg.onnx")
    check_answers(model, tmp_path / "vgg.onnx")


def test_more_than_256_classes_are_uint16_and_taken_at_the_cells(tmp_path: Path) -> None:
    model = heatmap_model(seeded(lambda: Pooled(nn.Linear(16, 300))), (64, 64))
    info = export(model, LabelMap.from_names([f"class {i}" for i in range(300)]), tmp_path / "many.onnx")
    assert info.class_map_at == "cell"
    answer = fcnseg.load(tmp_path / "many.onnx", "cpu").segment(random_images(1, 97, 131)[0])
    assert answer.class_map.dtype == np.uint16
    assert answer.class_map.max() > 0
    check_answers(model, tmp_path / "many.onnx")


def test_the_segmenter_gives_what_plain_onnxruntime_gives(fcn_file: Path) -> None:
    session = onnxruntime.InferenceSession(str(fcn_file), providers=["CPUExecutionProvider"])
    segmenter = fcnseg.load(fcn_file, "cpu")
    for height, width in SIZES:
        image = random_images(1, height, width)[0]
        plain = session.run(["class_map"], {"image": image[None]})[0][0]
        np.testing.assert_array_equal(segmenter.segment(image).class_map, plain)


def test_a_batch_gives_each_image_the_answer_it_has_alone(fcn_file: Path) -> None:
    segmenter = fcnseg.load(fcn_file, "cpu")
    images = [random_images(1, 60 + i, 90 + i)[0] for i in range(4)]
    together = segmenter.segment_batch(images, confidence=True)
    for image, answer in zip(images, together, strict=True):
        alone = segmenter.segment(image, confidence=True)
        np.testing.assert_array_equal(answer.class_map, alone.class_map)
        np.testing.assert_array_equal(answer.heatmap, alone.heatmap)
        np.testing.assert_array_equal(answer.confidence, alone.confidence)


def test_confidence_is_empty_unless_asked_for(fcn_file: Path) -> None:
    session = onnxruntime.InferenceSession(str(fcn_file), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["image"]
    image = random_images(2, 40, 50)
    assert session.run(["confidence"], {"image": image})[0].shape == (2, 0, 0)
    asked = session.run(["confidence"], {"image": image, "with_confidence": np.array(True)})[0]
    assert asked.shape == (2, 40, 50)
    assert asked.min() > 255 / CLASSES - 1


def test_only_confidence_is_behind_the_if(fcn_file: Path) -> None:
    graph = onnx.load(fcn_file).graph
    (choice,) = [node for node in graph.node if node.op_type == "If"]
    inside = {node.op_type for a in choice.attribute if a.name == "then_branch" for node in a.g.node}
    assert "Softmax" in inside
    assert "Softmax" not in {node.op_type for node in graph.node}
    assert not inside & {"Conv", "ArgMax"}


def test_metadata_travels_with_the_file(fcn: SegmentationModel, fcn_file: Path) -> None:
    info = fcnseg.load(fcn_file, "cpu").info
    assert info.geometry == fcn.geometry
    assert info.label_map == LABELS
    assert info.variant == "fcn8s"
    assert info.metrics == {"mean_iou": 0.5}
    assert info.data_fingerprint == "f" * 64
    assert info.parity[-1].relative_error < 1e-4
    assert info.mean == (0.5, 0.4, 0.3)


def test_the_layers_travel_with_the_file(fcn: SegmentationModel, fcn_file: Path) -> None:
    layers = read_model_info(fcn_file).layers
    assert layers == derive_layers(fcn.net)
    assert [layer.name for layer in layers[-2:]] == ["scores.0", "scores.1"]
    assert count_parameters(layers) == sum(parameter.numel() for parameter in fcn.net.parameters())


def test_a_graph_that_answers_differently_is_not_written(
    fcn: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exporting._trace

    def wrong(model: SegmentationModel) -> onnx.ModelProto:
        proto = right(model)
        weight = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = np.frombuffer(weight.raw_data, np.float32).copy()
        values[::7] *= 1.05
        weight.raw_data = values.tobytes()
        return proto

    monkeypatch.setattr(exporting, "_trace", wrong)
    with pytest.raises(ParityError, match="not written"):
        export(fcn, LABELS, tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


def test_labels_must_fit_the_model(fcn: SegmentationModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 labels"):
        export(fcn, LabelMap.from_names(["a", "b"]), tmp_path / "x.onnx")

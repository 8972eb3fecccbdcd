import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import fcnseg
from fcnseg.engine import Engine
from fcnseg.errors import ArchitectureError, ParityError, UsageError, WeightsError
from fcnseg.layers import count_parameters
from fcnseg.model_file import read_model_info
from fcnseg.types import LabelMap
from tests.gpu import needs_gpu
from tests.image_folders import random_images
from tests.training.small_nets import Pooled, Residual, seeded
from tests.training.test_model import CLASSES, VggLike, classifier_of, fcn_model, heatmap_model
from training import export as exporting
from training.export import Store, export
from training.fcn import build_fcn
from training.half_weights import round_weights
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


@needs_gpu
def test_a_model_on_a_gpu_is_exported_as_on_the_cpu(fcn: SegmentationModel, fcn_file: Path, tmp_path: Path) -> None:
    on_gpu = copy.deepcopy(fcn).cuda()
    export(on_gpu, LABELS, tmp_path / "fcn.onnx", metrics={"mean_iou": 0.5}, data_fingerprint="f" * 64)
    assert (tmp_path / "fcn.onnx").read_bytes() == fcn_file.read_bytes()
    assert next(on_gpu.parameters()).is_cuda


def test_the_file_tells_no_folder_of_the_machine_that_made_it(fcn_file: Path) -> None:
    assert str(Path(exporting.__file__).parent).encode() not in fcn_file.read_bytes()


def test_weights_have_the_names_of_the_model(fcn: SegmentationModel, fcn_file: Path) -> None:
    kept = {initializer.name for initializer in onnx.load(fcn_file).graph.initializer}
    assert {name for name, _ in fcn.named_parameters() if name.startswith("net.scores")} <= kept


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


def test_scores_of_every_pixel_are_computed_for_confidences_alone(fcn_file: Path) -> None:
    graph = onnx.load(fcn_file).graph
    (choice,) = [node for node in graph.node if node.op_type == "If"]
    branches = {a.name: {node.op_type for node in a.g.node} for a in choice.attribute}
    asked, unasked = branches["then_branch"], branches["else_branch"]
    assert "Exp" in asked
    assert "NonZero" in unasked
    assert not {"Exp", "NonZero", "GatherND"} & {node.op_type for node in graph.node}
    assert "Conv" not in asked | unasked


def test_a_class_map_is_the_same_with_confidences_and_without(fcn_file: Path) -> None:
    engine = Engine(fcn_file, "cpu")
    for height, width in SIZES:
        images = random_images(2, height, width)
        both = [engine.run(images, confidence=confidence).class_map for confidence in (False, True)]
        np.testing.assert_array_equal(*both)
    even = np.full((1, 97, 131, 3), 80, np.uint8)  # few borders or none
    np.testing.assert_array_equal(*[engine.run(even, confidence=c).class_map for c in (False, True)])


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


def spoil_traces(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[onnx.GraphProto], None]) -> None:
    """Let exports write graphs that are changed after they are traced."""
    right = exporting._trace

    def wrong(model: SegmentationModel) -> onnx.ModelProto:
        proto = right(model)
        spoil(proto.graph)
        return proto

    monkeypatch.setattr(exporting, "_trace", wrong)


def change_weights(graph: onnx.GraphProto) -> None:
    """Change every seventh value of the largest weight."""
    weight = max(graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(weight.raw_data, np.float32).copy()
    values[::7] *= 1.05
    weight.raw_data = values.tobytes()


def test_a_graph_that_answers_differently_is_not_written(
    fcn: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_traces(monkeypatch, change_weights)
    with pytest.raises(ParityError, match="not written"):
        export(fcn, LABELS, tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


def raise_output(graph: onnx.GraphProto, name: str, least: int) -> None:
    """Make an output of integers no less than a value anywhere."""
    node = next(node for node in graph.node if name in node.output)
    node.output[list(node.output).index(name)] = "right"
    kind = next(output for output in graph.output if output.name == name).type.tensor_type.elem_type
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(least, np.int32), "least"))
    for operator, given, found, attributes in (
        ("Cast", ["right"], "wide", {"to": onnx.TensorProto.INT32}),
        ("Max", ["wide", "least"], "more", {}),
        ("Cast", ["more"], name, {"to": kind}),
    ):
        graph.node.append(onnx.helper.make_node(operator, given, [found], **attributes))


def test_a_graph_whose_confidences_are_wrong_is_not_written_and_told_as_such(
    fcn: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_traces(monkeypatch, lambda graph: raise_output(graph, "confidence", 255))
    with pytest.raises(ParityError, match=r"different confidences at 97x131 \(\d+ pixels\); the file was not written"):
        export(fcn, LABELS, tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [CLASSES, 80])
def test_a_graph_whose_class_map_is_wrong_is_not_written(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 64 classes: that of a run without confidences, which is computed in another way than with them."""
    output = -1 if classes <= 64 else 0
    spoil_traces(monkeypatch, lambda graph: raise_output(graph, graph.output[output].name, classes - 1))
    model = heatmap_model(seeded(lambda: Pooled(nn.Linear(16, classes))), (64, 64))
    with pytest.raises(ParityError, match=r"different class maps at .* pixels\); the file was not written"):
        export(model, LabelMap.from_names([f"class {i}" for i in range(classes)]), tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


def test_labels_must_fit_the_model(fcn: SegmentationModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 labels"):
        export(fcn, LabelMap.from_names(["a", "b"]), tmp_path / "x.onnx")


def test_a_net_beyond_what_a_file_holds_is_refused_before_it_is_traced(
    fcn: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(model: SegmentationModel, most: int, store: Store = "fp32") -> str:
        monkeypatch.setattr(exporting, "_MOST_BYTES", most)
        labels = LabelMap.from_names([f"class {i}" for i in range(model.num_classes)])
        with pytest.raises(ArchitectureError, match="GiB of weights, and a model file holds less than 2;") as refused:
            export(model, labels, tmp_path / "m.onnx", store=store)
        return str(refused.value).partition("; ")[2]

    values, smaller = sum(t.numel() for t in (*fcn.parameters(), *fcn.buffers())), "choose a smaller classifier"
    monkeypatch.setattr(exporting, "_trace", lambda _: pytest.fail("it was traced"))
    assert refusal(fcn, 2 * values) == f"{smaller}, or store them in 16 bits (--store fp16)"
    assert refusal(fcn, 2 * values - 1) == refusal(fcn, 2 * values - 1, "fp16") == smaller
    heatmap = heatmap_model(seeded(Residual), (64, 64))  # 'fcnseg heatmap' has no such option
    assert refusal(heatmap, 3 * sum(t.numel() for t in heatmap.parameters())) == smaller
    assert not list(tmp_path.iterdir())


def test_weights_stored_in_16_bits_halve_the_file_and_answer_as_the_rounded_model(tmp_path: Path) -> None:
    model = fcn_model(seeded(VggLike), (128, 128))
    export(model, LABELS, tmp_path / "whole.onnx")
    export(model, LABELS, tmp_path / "half.onnx", store="fp16")
    check_answers(round_weights(model), tmp_path / "half.onnx")
    whole, half = (weight_bytes(tmp_path / name) for name in ("whole.onnx", "half.onnx"))
    assert half < 0.55 * whole


def test_batch_norms_are_folded_before_the_weights_are_rounded(fcn: SegmentationModel, tmp_path: Path) -> None:
    net = fcn_model(seeded(lambda: Pooled(nn.Linear(16, 7))), (64, 64))
    rounded = round_weights(net)
    images = torch.from_numpy(random_images(1, 64, 80))
    with torch.no_grad():
        before, after = net.pixel_scores(images), rounded.pixel_scores(images)
    spread = float(before.max() - before.min())
    assert 0 < float((before - after).abs().max()) < 5e-3 * spread
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    export(net, LABELS, tmp_path / "half.onnx", store="fp16")
    stored = onnx.load(tmp_path / "half.onnx").graph.initializer
    weights = [
        tensor for tensor in stored if len(tensor.dims) == 4 and np.prod(tensor.dims) > 3
    ]  # not the image's scale
    assert weights
    assert all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights)


class Centred(nn.Conv2d):
    """Computes with other weights than it has, as a convolution with weight standardisation does."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the base class's name)
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


def test_a_convolution_of_other_weights_than_it_has_keeps_its_batch_norm() -> None:
    def net() -> nn.Module:
        pooled = Pooled(nn.Linear(16, 7))
        pooled.features[1][0] = Centred(8, 12, 3, stride=2, padding=1)
        return pooled

    model = heatmap_model(seeded(net), (64, 64))
    images = torch.from_numpy(random_images(1, 64, 80))
    with torch.no_grad():
        before, after = model.pixel_scores(images), round_weights(model).pixel_scores(images)
    assert float((before - after).abs().max()) < 5e-3 * float(before.max() - before.min())


def test_a_weight_that_16_bits_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = fcn_model(seeded(VggLike), (128, 128))
    with torch.no_grad():
        model.net.scores[0].weight[0, 0] = 1e6
    with pytest.raises(WeightsError, match="16 bits cannot hold"):
        export(model, LABELS, tmp_path / "half.onnx", store="fp16")
    assert not list(tmp_path.iterdir())


def test_learned_upsampling_is_exported_for_any_size(tmp_path: Path) -> None:
    net, size = seeded(VggLike), (128, 128)
    fcn = build_fcn(net, "fcn8s", CLASSES, size, upsampling="learned")
    generator = torch.Generator().manual_seed(3)
    for parameter in (*fcn.scores.parameters(), *fcn.upscores.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=generator)
    model = SegmentationModel(fcn, fcn.net_grid, classifier_of(net, size), "fcn8s").eval()
    export(model, LABELS, tmp_path / "learned.onnx")
    check_answers(model, tmp_path / "learned.onnx")


def weight_bytes(path: Path) -> int:
    return sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)

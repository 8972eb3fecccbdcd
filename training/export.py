"""From a segmentation model to one ONNX file, gated on parity between PyTorch and onnxruntime."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from fcnseg.certificate import Certificate
from fcnseg.errors import ArchitectureError, ParityError, UsageError, one_line
from fcnseg.files import printable, replacing
from fcnseg.model_card import ModelCard
from fcnseg.model_file import METADATA_KEY, OUTPUTS, ModelInfo, ParityRecord, dump_info, parse_info, read_model_info
from fcnseg.types import LabelMap
from training.environment import package_versions
from training.half_weights import round_weights, store_half
from training.layers import derive_layers
from training.model import SegmentationModel
from training.net_file import without_folder
from training.precision import FilePrecision, Images, halve, quantise
from training.quiet import quiet

Store: TypeAlias = Literal["fp32", "fp16"]
OPSET = 20
IR_VERSION = 10
"""What onnxruntime 1.18 and later read."""
PARITY_SIZES = ((97, 131), (224, 300), (33, 47), (1, 1))
TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2
"""What 16-bit floats, of 11 significant bits, may make of scores on their way through a hundred layers."""
_FLAG = "with_confidence"
_PLAIN = "plain_class_map"
_TRACED_SIZE = (2, 203, 157)
_MOST_BYTES = 2**31 - 2**24
"""Of weights in one file: protobuf holds no more than 2 GiB, the graph and the metadata among it."""


def export(
    model: SegmentationModel,
    label_map: LabelMap,
    path: Path,
    *,
    metrics: dict[str, float] | None = None,
    data_fingerprint: str | None = None,
    certificate: Certificate | None = None,
    card: ModelCard | None = None,
    store: Store = "fp32",
    precision: FilePrecision = "fp32",
    calibration: Images = (),
) -> ModelInfo:
    """Write a model file, after proving that onnxruntime computes what PyTorch does.

    Args:
        model: The model, on any device; it is put in eval mode.
        label_map: Its classes, as many as it scores.
        path: Where the file goes; it appears only when the proof holds.
        metrics: Validation metrics to carry, by name, each in 0..1.
        data_fingerprint: Fingerprint of the training data to carry.
        certificate: What the conversion of the classifier proved, to carry along.
        card: The model card to carry.
        store: How weights are stored: as they are, or rounded to 16 bits, which halves the file. They are computed
            with as 32-bit floats in either case.
        precision: What the net computes with; `fp16` stores weights in 16 bits, `int8` those of convolutions in 8.
        calibration: Images that 8-bit integers are scaled by.

    Returns:
        The metadata written, the export's own proof included.

    Raises:
        UsageError: The label map does not fit the model, weights are to be stored otherwise than they are computed
            with, or there are no images for 8-bit integers.
        ModelFileError: A metric is no number from 0 to 1.
        WeightsError: A weight cannot be rounded to 16 bits.
        ArchitectureError: The net has an operator that cannot be exported, or that onnxruntime cannot run, or more
            weights than a file can hold.
        ParityError: At some size the scores differ by more than 1e-4 of their range, or a class map differs where the
            two best scores are further apart than twice that; with 16-bit floats 2e-2. 8-bit integers are made of a
            file that is proved in 32 bits, and measured, not proved (`training.precision.compare`).
    """
    if store != "fp32" and precision != "fp32":
        raise UsageError(
            f"weights cannot be stored as {store} where the net computes in {precision}; leave the store out"
        )
    if len(label_map) != model.num_classes:
        raise UsageError(f"{len(label_map)} labels were given for a model of {model.num_classes} classes")
    _require_room(model, store, precision)
    model.eval()
    if next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    info = ModelInfo(
        architecture=printable(without_folder(model.architecture)),
        variant=model.variant,
        label_map=label_map,
        geometry=model.geometry,
        global_context=model.global_context,
        class_map_at=model.class_map_at,
        mean=model.mean,
        std=model.std,
        licence=model.licence,
        data_fingerprint=data_fingerprint,
        metrics=metrics or {},
        certificate=certificate,
        card=card,
        layers=derive_layers(model.net),
        versions=package_versions(),
        precision=precision,
    )
    parse_info(dump_info(info), "the new file")  # what could not be read back is not written
    if "fp16" in (store, precision):
        model = round_weights(model)
    proto = _trace(halve(model) if precision == "fp16" else model)
    _forget_traces(proto.graph)
    _declare(proto, model.num_classes)
    _guard_confidence(proto)
    if store == "fp16":
        store_half(proto)
    with replacing(path) as temporary:
        error = _write_proved(proto, model, temporary, info, HALF_TOLERANCE if precision == "fp16" else TOLERANCE)
        compared = "onnxruntime with PyTorch" + (", in fp32" if precision == "int8" else "")
        info = replace(info, parity=(ParityRecord(compared, error),))
        if precision == "int8":
            proto = quantise(temporary, calibration)
        _set_info(proto, info)
        onnx.save(proto, temporary)
    return info


def replace_card(path: Path, card: ModelCard, target: Path) -> ModelInfo:
    """Write a model file once more with another card, and return its metadata."""
    proto = onnx.load(path)
    info = replace(read_model_info(path), card=card)
    _set_info(proto, info)
    with replacing(target) as temporary:
        onnx.save(proto, temporary)
    return info


def _require_room(model: SegmentationModel, store: Store, precision: FilePrecision) -> None:
    """Refuse a net whose weights no file holds, before minutes are spent on it."""
    values = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    size = values * (2 if "fp16" in (store, precision) else 4)
    if size <= _MOST_BYTES:
        return
    remedy = "choose a smaller classifier"
    if store == precision == "fp32" and values * 2 <= _MOST_BYTES and model.variant != "heatmap":
        remedy += ", or store them in 16 bits (--store fp16)"
    raise ArchitectureError(
        f"{without_folder(model.architecture)} has {size / 2**30:.1f} GiB of weights, and a model file holds less than"
        f" 2; {remedy}"
    )


def _write_proved(
    proto: onnx.ModelProto, model: SegmentationModel, path: Path, info: ModelInfo, tolerance: float
) -> float:
    _set_info(proto, info)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return max(_parity(session, model, (1 + i % 2, *size), tolerance) for i, size in enumerate(PARITY_SIZES))


def _trace(model: SegmentationModel) -> onnx.ModelProto:
    image = torch.zeros(*_TRACED_SIZE, 3, dtype=torch.uint8)
    dynamic = torch.export.Dim.DYNAMIC
    names = [*OUTPUTS, _PLAIN] if model.has_plain_class_map else list(OUTPUTS)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Outputs(_clamping(model)), (image,), dynamo=True,
                dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},), input_names=["image"], output_names=names,
                opset_version=OPSET, external_data=False, verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise ArchitectureError(
            f"{without_folder(model.architecture)} cannot be exported ({_reason(error)}); choose another classifier"
        ) from error
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto: onnx.ModelProto = program.model_proto
    proto.ir_version = IR_VERSION
    _name_as_in_the_model(proto.graph)
    return proto


def _name_as_in_the_model(graph: onnx.GraphProto) -> None:
    """Give weights the names that they have in the model, not in the module around it."""
    prefix = "model."
    for initializer in graph.initializer:
        initializer.name = initializer.name.removeprefix(prefix)
    for node in graph.node:
        node.input[:] = [name.removeprefix(prefix) for name in node.input]


class _Outputs(nn.Module):
    """A model's outputs, and the class map once more, by the way that is taken where confidences are not asked for."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        class_map, heatmap, confidence = self.model(image)
        if not self.model.has_plain_class_map:
            return class_map, heatmap, confidence
        return class_map, heatmap, confidence, self.model.class_map(heatmap, (image.shape[1], image.shape[2]))


class _Clamp(nn.Module):
    """nn.ReLU6 as one operator: the exporter takes ReLU6 apart symbol by symbol, at 40 % of a MobileNet's export."""

    def forward(self, features: Tensor) -> Tensor:
        return features.clamp(0, 6)


def _clamping(model: SegmentationModel) -> SegmentationModel:
    """A copy of a model whose ReLU6 layers are clamps; parity is measured against the model itself."""
    copied = copy.deepcopy(model)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, _Clamp())
    return copied


def _forget_traces(graph: onnx.GraphProto) -> None:
    """Take out where in the source each node came from: it tells the folders of the machine that exported."""
    del graph.metadata_props[:]
    parts: list[Any] = [*graph.node, *graph.initializer, *graph.input, *graph.output]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


def _declare(proto: onnx.ModelProto, num_classes: int) -> None:
    """Give inputs and outputs the names and shapes of the contract, and more than 256 classes their uint16."""
    graph = proto.graph
    shapes: dict[str, tuple[int, list[str | int | None]]] = {
        "image": (TensorProto.UINT8, ["N", "H", "W", 3]),
        "class_map": (TensorProto.UINT8 if num_classes <= 256 else TensorProto.UINT16, ["N", "H", "W"]),
        _PLAIN: (TensorProto.UINT8, ["N", "H", "W"]),
        "heatmap": (TensorProto.FLOAT, ["N", num_classes, "h", "w"]),
        # Empty, (N, 0, 0), when it is not asked for, hence names of its own.
        "confidence": (TensorProto.UINT8, ["N", "H_confidence", "W_confidence"]),
    }
    if num_classes > 256:
        producer = _producer(graph, "class_map")
        producer.output[list(producer.output).index("class_map")] = "class_map_int32"
        graph.node.append(helper.make_node("Cast", ["class_map_int32"], ["class_map"], to=TensorProto.UINT16))
    for value in (*graph.input, *graph.output):
        element, shape = shapes[value.name]
        value.CopyFrom(helper.make_tensor_value_info(value.name, element, shape))
    del graph.value_info[:]  # shapes of intermediates are expressions of no use to a reader


def _producer(graph: onnx.GraphProto, value: str) -> onnx.NodeProto:
    return next(node for node in graph.node if value in node.output)


def _guard_confidence(proto: onnx.ModelProto) -> None:
    """Move what only `confidence` needs behind an If on the optional input `with_confidence`.

    onnxruntime computes every output of a graph whether it is fetched or not; a branch is skipped. Confidences need the
    scores of all pixels, and with these the class map comes by the way; without, it is computed where it has to be.
    """
    graph = proto.graph
    plain = [o.name for o in graph.output if o.name == _PLAIN]
    chosen = ["class_map", "confidence"] if plain else ["confidence"]
    declared = [o for o in graph.output if o.name in chosen]
    for_plain, for_chosen = _ancestors(graph, plain), _ancestors(graph, chosen)
    common = _ancestors(graph, [o.name for o in graph.output if o.name not in (*chosen, _PLAIN)])
    common |= for_plain & for_chosen
    asked = [node for node in graph.node if set(node.output) & (for_chosen - common)]
    unasked = [node for node in graph.node if set(node.output) & (for_plain - common)]
    kept = [node for node in graph.node if set(node.output) & common]
    for node in asked:
        node.output[:] = [f"every_{name}" if name in chosen else name for name in node.output]
    unasked += [
        helper.make_node("Shape", ["image"], ["image_count"], start=0, end=1),
        helper.make_node("Concat", ["image_count", "no_pixels"], ["empty_shape"], axis=0),
        helper.make_node("ConstantOfShape", ["empty_shape"], ["no_confidence"],
                         value=helper.make_tensor("zero", TensorProto.UINT8, [1], [0])),
    ]  # fmt: skip
    sizes = helper.make_tensor("no_pixels", TensorProto.INT64, [2], [0, 0])
    everywhere = _renamed(declared, [f"every_{name}" for name in chosen])
    at_borders = _renamed(declared, [*plain, "no_confidence"])
    choice = helper.make_node(
        "If", [_FLAG], chosen, name="confidence_if_asked_for",
        then_branch=helper.make_graph(asked, "confidence", [], everywhere),
        else_branch=helper.make_graph(unasked, "no_confidence", [], at_borders, [sizes]),
    )  # fmt: skip
    del graph.node[:]
    graph.node.extend([*kept, choice])
    for output in [o for o in graph.output if o.name == _PLAIN]:
        graph.output.remove(output)
    graph.input.append(helper.make_tensor_value_info(_FLAG, TensorProto.BOOL, []))
    graph.initializer.append(helper.make_tensor(_FLAG, TensorProto.BOOL, [], [False]))


def _renamed(values: list[onnx.ValueInfoProto], names: list[str]) -> list[onnx.ValueInfoProto]:
    copies = [copy.deepcopy(value) for value in values]
    for value, name in zip(copies, names, strict=True):
        value.name = name
    return copies


def _ancestors(graph: onnx.GraphProto, values: list[str]) -> set[str]:
    """Names of all values that the given ones are computed from, themselves included."""
    producers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    pending = list(values)
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        if name in producers:
            pending += producers[name].input
    return found


def _set_info(proto: onnx.ModelProto, info: ModelInfo) -> None:
    kept = [p for p in proto.metadata_props if p.key != METADATA_KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.metadata_props.add(key=METADATA_KEY, value=dump_info(info))


def _parity(
    session: onnxruntime.InferenceSession, model: SegmentationModel, shape: tuple[int, int, int], tolerance: float
) -> float:
    """Relative error of the heatmap at one input shape.

    Raises:
        ParityError: The error is beyond the tolerance, or a class map, computed with confidences or without, differs
            where the scores are clearly apart, or confidences differ.
    """
    generator = np.random.default_rng(sum(shape))
    image = generator.integers(0, 256, (*shape, 3), np.uint8)
    class_map, heatmap, confidence, plain_class_map = _answers(session, model, image)
    device = next(model.parameters()).device
    with torch.no_grad():
        images = torch.from_numpy(image).to(device)
        expected = [t.cpu().numpy() for t in model(images)]
    spread = float(np.ptp(expected[1])) or 1.0
    error = float(np.abs(heatmap - expected[1]).max()) / spread
    if heatmap.shape != expected[1].shape or not error <= tolerance:
        raise ParityError(
            f"onnxruntime and PyTorch differ by {error:.1e} of the scores' range at {shape[1]}x{shape[2]}"
            f" (at most {tolerance:.0e}); the file was not written"
        )
    clear = _clear(model, images, 2 * tolerance * spread)
    for found in (class_map, plain_class_map):
        differ = found.shape != expected[0].shape
        wrong = 0 if differ else int(((found != expected[0]) & clear).sum())
        if differ or wrong:
            raise ParityError(
                f"onnxruntime and PyTorch give different class maps at {shape[1]}x{shape[2]} ({wrong} pixels); the file"
                " was not written"
            )
    # Scores that are apart by more than that have no close probabilities.
    if tolerance == TOLERANCE and (far := _far(confidence, expected[2])):
        raise ParityError(
            f"onnxruntime and PyTorch give different confidences at {shape[1]}x{shape[2]} ({far} pixels); the file was"
            " not written"
        )
    return error


def _answers(
    session: onnxruntime.InferenceSession, model: SegmentationModel, image: NDArray[np.uint8]
) -> tuple[NDArray[Any], ...]:
    """A file's answers to images, confidences asked for, and its class map where they are not."""
    try:
        asked = session.run(None, {"image": image, _FLAG: np.array(True)})
        return (*asked, *session.run(OUTPUTS[:1], {"image": image}))
    except Exception as error:  # onnxruntime's errors have no other base
        name, (height, width) = without_folder(model.architecture), image.shape[1:3]
        raise ArchitectureError(
            f"onnxruntime cannot run {name} at {height}x{width} ({_reason(error)}); the file was not written"
        ) from error


def _reason(error: Exception) -> str:
    """What a foreign error says, on one line: its first cause, where it has one."""
    cause = error.__cause__ or error
    return one_line(cause, 200)


def _clear(model: SegmentationModel, images: Tensor, gap: float) -> NDArray[np.bool_]:
    """(N, H, W): where a pixel's two best scores are further apart than `gap`."""
    size = (images.shape[1], images.shape[2])
    with torch.no_grad():
        scores = model.pixel_scores(images) if model.class_map_at == "pixel" else model.heatmap(images)
        if scores.shape[1] == 1:
            return np.ones((len(images), *size), bool)
        best = scores.topk(2, dim=1).values
        clear = best[:, 0] - best[:, 1] > gap
        if model.class_map_at == "cell":
            clear = model.enlarge(clear.byte(), size) != 0
    found: NDArray[np.bool_] = clear.cpu().numpy()
    return found


def _far(confidence: NDArray[np.uint8], expected: NDArray[np.uint8]) -> int:
    """The number of pixels whose confidences differ by more than a step of rounding; all, where the shapes differ."""
    if confidence.shape != expected.shape:
        return expected.size
    return int((np.abs(confidence.astype(int) - expected.astype(int)) > 1).sum())

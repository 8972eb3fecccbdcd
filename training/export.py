"""Export a segmentation model to one ONNX file, on condition of parity between PyTorch and onnxruntime."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from fcnseg.certificate import Certificate
from fcnseg.errors import ArchitectureError, UsageError, one_line
from fcnseg.files import printable, replacing
from fcnseg.model_card import ModelCard
from fcnseg.model_file import METADATA_KEY, OUTPUTS, ModelInfo, ParityRecord, dump_info, parse_info, read_model_info
from fcnseg.types import LabelMap
from training.environment import package_versions
from training.export_graph import PLAIN, declare, forget_traces, guard_confidence, name_as_in_the_model
from training.half_weights import round_weights, store_half
from training.layers import derive_layers
from training.model import SegmentationModel
from training.net_file import without_folder
from training.parity import HALF_TOLERANCE, PARITY_SIZES, TOLERANCE, parity
from training.precision import FilePrecision, Images, halve, quantise
from training.quiet import quiet

Store: TypeAlias = Literal["fp32", "fp16"]
OPSET = 20
IR_VERSION = 10
"""The ONNX IR version, which onnxruntime 1.18 and later can read."""
_TRACED_SIZE = (2, 203, 157)
_MOST_BYTES = 2**31 - 2**24
"""Most bytes of weights in one file: protobuf's limit is 2 GiB, including the graph and the metadata."""


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
        path: Where the file is written; it appears only if the parity check passes.
        metrics: Validation metrics for the metadata, by name, each in 0..1.
        data_fingerprint: Fingerprint of the training data, for the metadata.
        certificate: What the conversion of the classifier proved, for the metadata.
        card: The model card, for the metadata.
        store: How weights are stored: unchanged, or rounded to 16 bits, which halves the file. The net computes with
            them as 32-bit floats in either case.
        precision: What the net computes with; `fp16` stores weights in 16 bits, `int8` those of convolutions in 8.
        calibration: Images from which the scales of 8-bit integers are computed.

    Returns:
        The metadata written, including the record of the export's parity check.

    Raises:
        UsageError: The label map does not fit the model, `store` contradicts `precision`, or there are no calibration
            images for 8-bit integers.
        ModelFileError: A metric is not a number from 0 to 1.
        WeightsError: A weight cannot be rounded to 16 bits.
        ArchitectureError: The net has an operator that cannot be exported, or that onnxruntime cannot run, or more
            weights than a file can hold.
        ParityError: At some size the scores differ by more than 1e-4 of their range (2e-2 with 16-bit floats), or a
            class map differs where the two best scores are further apart than twice that. An `int8` file is made from
            a file that passed the check in 32 bits; its own accuracy is measured (`training.precision.compare`), not
            proved.
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
    parse_info(dump_info(info), "the new file")  # refuse to write metadata that cannot be read back
    if "fp16" in (store, precision):
        model = round_weights(model)
    proto = _trace(halve(model) if precision == "fp16" else model)
    forget_traces(proto.graph)
    declare(proto, model.num_classes)
    guard_confidence(proto)
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
    """Write a copy of a model file with another card, and return its metadata."""
    proto = onnx.load(path)
    info = replace(read_model_info(path), card=card)
    _set_info(proto, info)
    with replacing(target) as temporary:
        onnx.save(proto, temporary)
    return info


def _require_room(model: SegmentationModel, store: Store, precision: FilePrecision) -> None:
    """Refuse a net whose weights do not fit into a file, before minutes are spent on its export."""
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
    return max(parity(session, model, (1 + i % 2, *size), tolerance) for i, size in enumerate(PARITY_SIZES))


def _trace(model: SegmentationModel) -> onnx.ModelProto:
    image = torch.zeros(*_TRACED_SIZE, 3, dtype=torch.uint8)
    dynamic = torch.export.Dim.DYNAMIC
    names = [*OUTPUTS, PLAIN] if model.has_plain_class_map else list(OUTPUTS)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Outputs(_clamping(model)), (image,), dynamo=True,
                dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},), input_names=["image"], output_names=names,
                opset_version=OPSET, external_data=False, verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = one_line(error.__cause__ or error, 200)
        raise ArchitectureError(
            f"{without_folder(model.architecture)} cannot be exported ({reason}); choose another classifier"
        ) from error
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto: onnx.ModelProto = program.model_proto
    proto.ir_version = IR_VERSION
    name_as_in_the_model(proto.graph)
    return proto


class _Outputs(nn.Module):
    """A model's outputs, and the class map a second time, computed as it is if confidences are not asked for."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        class_map, heatmap, confidence = self.model(image)
        if not self.model.has_plain_class_map:
            return class_map, heatmap, confidence
        return class_map, heatmap, confidence, self.model.class_map(heatmap, (image.shape[1], image.shape[2]))


class _Clamp(nn.Module):
    """nn.ReLU6 as a single operator: the exporter's decomposition of ReLU6 takes 40 % of a MobileNet's export time."""

    def forward(self, features: Tensor) -> Tensor:
        return features.clamp(0, 6)


def _clamping(model: SegmentationModel) -> SegmentationModel:
    """Copy a model with clamps for ReLU6 layers; parity is checked against the original model."""
    copied = copy.deepcopy(model)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, _Clamp())
    return copied


def _set_info(proto: onnx.ModelProto, info: ModelInfo) -> None:
    kept = [p for p in proto.metadata_props if p.key != METADATA_KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.metadata_props.add(key=METADATA_KEY, value=dump_info(info))

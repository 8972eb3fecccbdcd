"""The model file: one ONNX file with everything that a server needs in order to answer with masks.

Input `image` is uint8 (N, H, W, 3) RGB with N, H and W dynamic; normalisation, padding, resampling and cropping are in
the graph. Outputs are `class_map` (N, H, W), `heatmap` (N, K, h, w) and `confidence` (N, H, W), the last behind the
optional boolean input `with_confidence`. The metadata property `fcnseg` holds a `ModelInfo` as JSON.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import onnxruntime
from pydantic import Field, TypeAdapter, ValidationError

from fcnseg.certificate import Certificate
from fcnseg.devices import FATAL_ONLY
from fcnseg.errors import ModelFileError, one_line
from fcnseg.files import is_named_in_utf8, shown
from fcnseg.geometry import Geometry
from fcnseg.layers import Layer
from fcnseg.model_card import ModelCard
from fcnseg.model_grammar import require_plain
from fcnseg.types import LabelMap, Rgb

METADATA_KEY = "fcnseg"
INPUTS = ("image",)
OUTPUTS = CLASS_MAP, HEATMAP, CONFIDENCE = "class_map", "heatmap", "confidence"
CELL_RESOLUTION_ABOVE = 64
"""Above this many classes, the class map is the arg-max at the heatmap's cells, enlarged by nearest neighbour.

An arg-max per pixel of 1000 classes would need 8.4 GB of float scores at 1024x2048.
"""


@dataclass(frozen=True)
class ParityRecord:
    """How closely two computations of the same scores agreed when the file was made.

    Attributes:
        compared: What was compared with what.
        relative_error: Largest absolute difference over the range of the scores.
    """

    compared: str
    relative_error: float


@dataclass(frozen=True)
class ModelInfo:
    """The metadata of a model file.

    Attributes:
        architecture: The backbone, by its torchvision or timm name.
        variant: `heatmap` for a converted classifier, else fcn32s, fcn16s or fcn8s.
        label_map: Classes, colours and ignore id.
        geometry: How an image of any size is padded for the net, and how the heatmap's cells map back to its pixels.
        global_context: Modules through which a cell depends on the whole image (such as squeeze-and-excitation); empty
            when a cell depends only on its receptive field, which makes exact tiling possible.
        class_map_at: `pixel` when the arg-max is taken at every pixel, `cell` when it is taken at the heatmap's cells
            and enlarged by nearest neighbour (above 64 classes).
        mean: Channel means (RGB, of values in 0..1) that the graph subtracts; for information.
        std: Channel standard deviations that the graph divides by; for information.
        licence: What is known about the licence of the weights and the training data.
        data_fingerprint: SHA-256 of the training data's file names and contents; None when nothing was trained.
        metrics: Validation metrics by name, each in 0..1.
        certificate: What the conversion of the classifier proved; None for trained nets, which no longer compute the
            classifier.
        parity: The parity checks that were passed when the file was made.
        card: Where a trained model comes from and what it can be trusted with; None in files without a card.
        layers: The net's layers, in the order in which they run; empty in files that do not list them.
        versions: Versions of the packages that made the file.
        precision: What the net computes with: 32-bit floats, 16-bit floats, or 8-bit integers.
        format: Version of this metadata.
    """

    architecture: str
    variant: Literal["heatmap", "fcn32s", "fcn16s", "fcn8s"]
    label_map: LabelMap
    geometry: Geometry
    global_context: tuple[str, ...]
    class_map_at: Literal["pixel", "cell"]
    mean: Rgb
    std: Rgb
    licence: str | None = None
    data_fingerprint: str | None = None
    metrics: dict[str, Annotated[float, Field(ge=0, le=1)]] = field(default_factory=dict)
    certificate: Certificate | None = None
    parity: tuple[ParityRecord, ...] = ()
    card: ModelCard | None = None
    layers: tuple[Layer, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    format: Annotated[int, Field(ge=1, le=1)] = 1


_ADAPTER = TypeAdapter(ModelInfo)


def dump_info(info: ModelInfo) -> str:
    """Return the JSON for the metadata property `fcnseg`."""
    return _ADAPTER.dump_json(info).decode()


def parse_info(text: str, source: str) -> ModelInfo:
    """Validate the metadata JSON of a model file.

    Args:
        text: The JSON.
        source: Where it came from, for the message.

    Raises:
        ModelFileError: The metadata is not valid; the message names the first field that is wrong.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ModelFileError(
            f"{source}: its fcnseg metadata is not valid at {where}: {first['msg']}; export the model again"
        ) from error


def read_model_info(path: Path) -> ModelInfo:
    """Read the metadata of a model file, without preparing the model to run.

    Raises:
        ModelFileError: The file does not exist or is not a valid fcnseg model.
    """
    require_model_file(path)
    return read_info(open_unprepared(path, onnxruntime.SessionOptions()), path)


def require_model_file(path: Path) -> None:
    """Check that a file exists and contains nothing but a model.

    Raises:
        ModelFileError: The check fails; the message says why.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"model file {path} {what}; make one with 'fcnseg heatmap' or 'fcnseg export'")
    if not is_named_in_utf8(path):
        raise ModelFileError(f"model file {shown(path)} is not named in UTF-8, as onnxruntime needs; rename it")
    require_plain(path)


def open_unprepared(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Open a model file on the CPU without graph optimisation (such as constant folding) or weight prepacking.

    Raises:
        ModelFileError: onnxruntime cannot open it.
    """
    options.log_severity_level = FATAL_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        reason = one_line(error)
        raise ModelFileError(f"{path} is not an ONNX file that onnxruntime can open: {reason}") from error


def read_info(session: onnxruntime.InferenceSession, path: Path) -> ModelInfo:
    """Read and check the metadata and signature of a model that onnxruntime has opened.

    Raises:
        ModelFileError: The file was not made by fcnseg, or its inputs and outputs do not fit its metadata.
    """
    try:
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} has metadata that is no UTF-8 text: {error}; export the model again") from error
    if text is None:
        raise ModelFileError(
            f"{path} is an ONNX file without the metadata property {METADATA_KEY!r} that tells classes and geometry;"
            " make model files with 'fcnseg heatmap' or 'fcnseg export'"
        )
    inputs = tuple(node.name for node in session.get_inputs())
    outputs = tuple(node.name for node in session.get_outputs())
    if inputs != INPUTS or outputs != OUTPUTS:
        raise ModelFileError(
            f"{path} has inputs {', '.join(inputs)} and outputs {', '.join(outputs)} where a model file has"
            f" {', '.join(INPUTS)} and {', '.join(OUTPUTS)}; export the model again"
        )
    info = parse_info(text, str(path))
    class_map, heatmap = session.get_outputs()[:2]
    ids = f"tensor({info.label_map.id_dtype.name})"
    channels = heatmap.shape[1] if len(heatmap.shape) == 4 else 0  # a symbolic name if the dimension is dynamic
    if class_map.type != ids or (isinstance(channels, int) and channels != len(info.label_map)):
        raise ModelFileError(
            f"{path}: its fcnseg metadata names {len(info.label_map)} classes, which its outputs, class_map of"
            f" {class_map.type} and heatmap of {heatmap.shape}, do not fit; export the model again"
        )
    return info

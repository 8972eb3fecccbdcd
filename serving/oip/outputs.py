"""The outputs of a request: which are wanted, and how they are written."""

from collections.abc import Sequence
from dataclasses import dataclass

from fcnseg import masks
from fcnseg.masks import Encoding
from fcnseg.model_file import CLASS_MAP, HEATMAP, OUTPUTS
from fcnseg.types import LabelMap, Segmentation
from serving.errors import InvalidFieldError, quote
from serving.oip import inference_pb2 as pb
from serving.oip.tensors import refuse_shared_memory, require_one_size
from serving.served_model import ServedModel

_ENCODINGS = {"raw": Encoding.RAW, "png": Encoding.PNG, "zstd": Encoding.ZSTD}


@dataclass(frozen=True)
class Output:
    """An output that is wanted.

    Attributes:
        name: `class_map`, `heatmap` or `confidence`.
        encoding: How its elements are written; other than raw, each image's become one element of a BYTES tensor.
    """

    name: str
    encoding: Encoding = Encoding.RAW


@dataclass(frozen=True)
class Written:
    """The outputs of one image.

    Attributes:
        parts: The bytes of each output, in the order they were wanted.
        size: (height, width) of the image.
        grid: (K, h, w) of the heatmap.
    """

    parts: tuple[bytes, ...]
    size: tuple[int, ...]
    grid: tuple[int, ...]


def class_map_datatype(label_map: LabelMap) -> str:
    """Return the datatype of a model's class maps: UINT8 for up to 256 classes, else UINT16."""
    return label_map.id_dtype.name.upper()


def read_outputs(request: pb.ModelInferRequest) -> tuple[Output, ...]:
    """Return the outputs that a request wants: those it names, or all.

    Raises:
        InvalidFieldError: It names one that does not exist, or one twice, or wants one in a way that there is not.
    """
    if not request.outputs:
        return tuple(Output(name) for name in OUTPUTS)
    found: dict[str, Output] = {}
    for i, tensor in enumerate(request.outputs):
        field = f"outputs[{i}]"
        if tensor.name not in OUTPUTS:
            raise InvalidFieldError(f"{field}.name", f"no output {quote(tensor.name)}; there are {', '.join(OUTPUTS)}")
        if tensor.name in found:
            raise InvalidFieldError(f"{field}.name", f"output {tensor.name!r} is wanted twice; name it once")
        found[tensor.name] = Output(tensor.name, _read_encoding(tensor, field))
    return tuple(found.values())


def _read_encoding(tensor: pb.ModelInferRequest.InferRequestedOutputTensor, field: str) -> Encoding:
    field = f"{field}.parameters"
    refuse_shared_memory(tensor.parameters, field)
    if "classification" in tensor.parameters:
        raise InvalidFieldError(
            field, f"output {tensor.name!r} has no classification, which is for one score a class; take it as it is"
        )
    if "encoding" not in tensor.parameters:
        return Encoding.RAW
    name = tensor.parameters["encoding"].string_param
    if name not in _ENCODINGS:
        raise InvalidFieldError(
            field, f"no encoding {quote(name)} of output {tensor.name!r}; there are {', '.join(_ENCODINGS)}"
        )
    if tensor.name == HEATMAP and name != "raw":
        raise InvalidFieldError(field, f"output {HEATMAP!r} has no encoding but raw; leave the parameter out")
    return _ENCODINGS[name]


def write_outputs(outputs: Sequence[Output], segmentation: Segmentation) -> Written:
    """Write one image's outputs.

    Args:
        outputs: Those that are wanted.
        segmentation: The image's, with a confidence map where that is wanted.
    """
    return Written(
        tuple(_write(output, segmentation) for output in outputs),
        segmentation.class_map.shape,
        segmentation.heatmap.shape,
    )


def _write(output: Output, segmentation: Segmentation) -> bytes:
    if output.name == HEATMAP:
        return segmentation.heatmap.astype("<f4", copy=False).tobytes()
    if output.name == CLASS_MAP:
        data = masks.encode(segmentation.class_map, output.encoding, segmentation.label_map)
    else:
        assert segmentation.confidence is not None, "confidence was asked for"  # noqa: S101
        data = masks.encode(segmentation.confidence, output.encoding, None)
    return data if output.encoding is Encoding.RAW else len(data).to_bytes(4, "little") + data


def write_response(
    response: pb.ModelInferResponse,
    request: pb.ModelInferRequest,
    model: ServedModel,
    outputs: Sequence[Output],
    images: Sequence[Written],
) -> None:
    """Write the answer to a request.

    Args:
        response: Is written. A message that is made apart would be copied twice when it is put into another.
        request: The request.
        model: The model that answered.
        outputs: The outputs that are wanted.
        images: What was written of each image, at least one.

    Raises:
        InvalidFieldError: The images differ in size.
    """
    require_one_size([image.size for image in images])
    response.model_name, response.model_version, response.id = model.name, model.version, request.id
    for i, output in enumerate(outputs):
        _describe(response.outputs.add(name=output.name), output, model.info.label_map, images)
        parts = [image.parts[i] for image in images]
        response.raw_output_contents.append(parts[0] if len(parts) == 1 else b"".join(parts))


def _describe(
    tensor: pb.ModelInferResponse.InferOutputTensor, output: Output, label_map: LabelMap, images: Sequence[Written]
) -> None:
    datatype = class_map_datatype(label_map) if output.name == CLASS_MAP else "UINT8"
    if output.name == HEATMAP:
        tensor.datatype = "FP32"
        tensor.shape.extend([len(images), *images[0].grid])
    elif output.encoding is Encoding.RAW:
        tensor.datatype = datatype
        tensor.shape.extend([len(images), *images[0].size])
    else:
        tensor.datatype = "BYTES"
        tensor.shape.append(len(images))
        height, width = images[0].size
        tensor.parameters["encoding"].string_param = output.encoding
        tensor.parameters["height"].int64_param = height
        tensor.parameters["width"].int64_param = width
        tensor.parameters["datatype"].string_param = datatype

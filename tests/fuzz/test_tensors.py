"""Tensors of the Open Inference Protocol: sources of images, or an error that names the field that is wrong."""

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.images import ImageLimits
from serving.errors import InvalidFieldError
from serving.oip import inference_pb2 as pb
from serving.oip.outputs import read_outputs
from serving.oip.tensors import read_sources, reads_at_once, split_elements
from tests.fuzz.law import require_line
from tests.fuzz.mutations import examples, mutated
from tests.fuzz.test_images import SEEDS as FILES

LIMITS = ImageLimits(max_bytes=1 << 20, max_pixels=1 << 20, max_side=1 << 12)
MOST = 16
LENGTHS = st.sampled_from([0, 1, 2, 3, 4, 13, 2**31 - 1, 2**32 - 1])


@st.composite
def framed(draw: st.DrawFn) -> bytes:
    """Elements of a BYTES tensor, most of them with their true length before them."""
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        element = draw(st.sampled_from(FILES) | st.binary(max_size=20))
        length = len(element) if draw(st.integers(0, 5)) else draw(LENGTHS)
        parts.append(struct.pack("<I", length) + element)
    return b"".join(parts) + (b"" if draw(st.integers(0, 5)) else draw(st.binary(max_size=5)))


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Requests for pixels or for files, with now and then an odd part."""
    request = pb.ModelInferRequest(model_name=draw(st.sampled_from(["tiny", "tiny", "tiny", "", "no such model"])))
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 0, 2]))):
        _add_input(draw, request)
    for name in draw(st.lists(st.sampled_from(["class_map", "heatmap", "confidence", "other", ""]), max_size=3)):
        output = request.outputs.add(name=name)
        if draw(st.integers(0, 3)) == 0:
            _add_parameter(draw, output.parameters)
    if draw(st.integers(0, 5)) == 0:
        _add_parameter(draw, request.parameters)
    return request


def _add_input(draw: st.DrawFn, request: pb.ModelInferRequest) -> None:
    pixels, typed = draw(st.booleans()), draw(st.booleans())
    shape = [draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5)), 3]
    count = int(np.prod(shape))
    tensor = request.inputs.add(name="image", datatype="UINT8" if pixels else "BYTES")
    tensor.shape[:] = shape if pixels else shape[:1]
    elements = draw(st.lists(st.sampled_from(FILES) | st.binary(max_size=9), min_size=shape[0], max_size=shape[0]))
    if pixels and typed:
        tensor.contents.uint_contents.extend(range(count))
    elif pixels:
        request.raw_input_contents.append(bytes(range(count)))
    elif typed:
        tensor.contents.bytes_contents.extend(elements)
    else:
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(e)) + e for e in elements))
    match draw(st.sampled_from(["", "", "", "name", "type", "shape", "raw", "typed", "parameter"])):
        case "name":
            tensor.name = draw(st.text(max_size=200))
        case "type":
            tensor.datatype = draw(st.sampled_from(["", "FP32", "BYTES", "UINT8", "uint8", "INT64"]))
        case "shape":
            tensor.shape[:] = draw(st.lists(st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 2**31, 2**63 - 1]), max_size=6))
        case "raw":
            request.raw_input_contents.append(draw(framed()))
        case "typed":
            tensor.contents.uint_contents.append(draw(LENGTHS))
            tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=2)))
        case "parameter":
            _add_parameter(draw, tensor.parameters)


def _add_parameter(draw: st.DrawFn, parameters: object) -> None:
    names = ["encoding", "classification", "shared_memory_region", "timeout", "triton_enable_empty_final_response", ""]
    parameter = parameters[draw(st.sampled_from(names))]  # type: ignore[index]
    match draw(st.sampled_from(["string", "int", "uint", "bool", "double", "none"])):
        case "string":
            parameter.string_param = draw(st.sampled_from(["png", "zstd", "raw", "coco_rle", ""]) | st.text(max_size=9))
        case "int":
            parameter.int64_param = draw(st.sampled_from([-(2**63), -1, 0, 1, 1000, 2**63 - 1]))
        case "uint":
            parameter.uint64_param = draw(st.sampled_from([0, 1, 2**64 - 1]))
        case "bool":
            parameter.bool_param = True
        case "double":
            parameter.double_param = draw(st.floats())


@examples(60)
@given(requests())
def test_a_request_is_sources_and_outputs_or_names_its_wrong_field(request: pb.ModelInferRequest) -> None:
    reads_at_once(request)
    try:
        sources = read_sources(request, MOST, LIMITS)
        outputs = read_outputs(request)
    except InvalidFieldError as error:
        require_line(error, field="")
        return
    assert len(sources) == request.inputs[0].shape[0]
    assert 1 <= len(outputs) <= 3


@examples(60)
@given(framed() | mutated([b"\x01\0\0\0a\x02\0\0\0bc"]), st.integers(0, MOST))
def test_bytes_are_as_many_elements_or_name_their_field(data: bytes, count: int) -> None:
    try:
        elements = split_elements(data, count, "here")
    except InvalidFieldError as error:
        require_line(error, field="here")
    else:
        assert b"".join(struct.pack("<I", len(element)) + element for element in elements) == data
        assert len(elements) == count

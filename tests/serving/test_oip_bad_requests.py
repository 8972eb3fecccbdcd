"""Whatever comes, the inference service says in one line what is wrong with it, and lives."""

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcnseg.images import ImageLimits
from serving.errors import InvalidFieldError
from serving.oip import inference_pb2 as pb
from serving.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from serving.oip.tensors import split_elements
from serving.server import ServerConfig
from tests.running_server import running_server

LIMITS = ImageLimits(max_bytes=20_000, max_pixels=5_000)
PIXELS = bytes(2 * 2 * 3)
REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
HUGE = 2**63 - 1
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def channel(tiny_model: Path) -> Iterator[grpc.Channel]:
    with (
        running_server(tiny_model, ServerConfig(limits=LIMITS)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield channel


def png(height: int, width: int) -> bytes:
    return cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes()


def turned_jpeg(height: int, width: int) -> bytes:
    """A file of so many rows and columns, to be shown turned by 90 degrees."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def prefixed(*files: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def ask(
    shape: tuple[int, ...] = (1, 2, 2, 3),
    *raw: bytes,
    datatype: str = "UINT8",
    name: str = "image",
    contents: pb.InferTensorContents | None = None,
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="tiny", raw_input_contents=raw)
    request.inputs.add(name=name, datatype=datatype, shape=shape, contents=contents)
    return request


def with_(request: pb.ModelInferRequest, change: Callable[[pb.ModelInferRequest], object]) -> pb.ModelInferRequest:
    change(request)
    return request


def good() -> pb.ModelInferRequest:
    return ask((1, 2, 2, 3), PIXELS)


def typed(shape: tuple[int, ...], datatype: str, **contents: Any) -> pb.ModelInferRequest:
    return ask(shape, datatype=datatype, contents=pb.InferTensorContents(**contents))


def wanting(name: str, **parameters: pb.InferParameter) -> pb.ModelInferRequest:
    return with_(good(), lambda r: r.outputs.add(name=name, parameters=parameters))


def text(value: str) -> pb.InferParameter:
    return pb.InferParameter(string_param=value)


def timeout(**value: Any) -> pb.ModelInferRequest:
    return with_(good(), lambda r: r.parameters["timeout"].CopyFrom(pb.InferParameter(**value)))


BAD = {
    "no input": (pb.ModelInferRequest(model_name="tiny"), "inputs", "has 0 inputs; give one, 'image'"),
    "unknown input": (ask((1, 2, 2, 3), PIXELS, name="picture"), "inputs[0].name", "no input 'picture'"),
    "long name": (ask((1, 2, 2, 3), PIXELS, name="\U0001f9ee" * 100_000), "inputs[0].name", "..."),
    "two inputs": (
        with_(good(), lambda r: r.inputs.add(name="image", datatype="UINT8", shape=[1, 2, 2, 3])),
        "inputs",
        "has 2 inputs",
    ),
    "two unknown inputs": (
        with_(ask((1, 2, 2, 3), PIXELS, name="picture"), lambda r: r.inputs.add(name="picture")),
        "inputs",
        "has 2 inputs",
    ),
    "datatype": (ask((1, 2, 2, 3), PIXELS, datatype="FP32"), "inputs[0].datatype", "'FP32'"),
    "no datatype": (ask((1, 2, 2, 3), PIXELS, datatype=""), "inputs[0].datatype", "''"),
    "no contents": (ask(), "raw_input_contents", "0 raw_input_contents"),
    "two raw contents": (ask((1, 2, 2, 3), PIXELS, PIXELS), "raw_input_contents", "2 raw_input_contents"),
    "both contents": (
        ask((1, 2, 2, 3), PIXELS, contents=pb.InferTensorContents(uint_contents=PIXELS)),
        "inputs[0].contents",
        "both",
    ),
    "no shape": (ask((), PIXELS), "inputs[0].shape", "shape []"),
    "three axes": (ask((2, 2, 3), PIXELS), "inputs[0].shape", "[2, 2, 3]"),
    "many axes": (ask((1,) * 1000, PIXELS), "inputs[0].shape", "..."),
    "no images": (ask((0, 2, 2, 3), b""), "inputs[0].shape", "at least 1"),
    "no rows": (ask((1, 0, 2, 3), b""), "inputs[0].shape", "at least 1"),
    "negative": (ask((1, -2, -2, 3), PIXELS), "inputs[0].shape", "at least 1"),
    "one channel": (ask((1, 2, 2, 1), bytes(4)), "inputs[0].shape", "[N, height, width, 3]"),
    "overflow": (ask((1, HUGE, HUGE, 3), PIXELS), "raw_input_contents[0]", "got 12"),
    "wraps to 12": (ask((1, 2**62, 4, 3), PIXELS), "raw_input_contents[0]", "got 12"),
    "too many": (ask((HUGE, 2, 2, 3), PIXELS), "inputs[0].shape", "at most 64"),
    "short": (ask((1, 2, 2, 3), PIXELS[:-1]), "raw_input_contents[0]", "12 elements of a byte each; got 11"),
    "long": (ask((1, 2, 2, 3), PIXELS + b"x"), "raw_input_contents[0]", "got 13"),
    "beyond the limit": (ask((1, 100, 51, 3), bytes(15_300)), "raw_input_contents[0]", "limit of 5000"),
    "too few typed": (typed((1, 2, 2, 3), "UINT8", uint_contents=[1] * 11), "inputs[0].contents.uint_contents", "11"),
    "typed 256": (typed((1, 1, 1, 3), "UINT8", uint_contents=[1, 256, 2]), "inputs[0].contents.uint_contents", "256"),
    "wrong type": (typed((1, 1, 1, 3), "UINT8", int_contents=[1, 2, 3]), "inputs[0].contents.int_contents", "uint"),
    "empty typed": (typed((1, 1, 1, 3), "UINT8"), "inputs[0].contents.uint_contents", "got 0"),
    "typed files": (typed((1,), "BYTES", uint_contents=[1]), "inputs[0].contents.uint_contents", "bytes_contents"),
    "files missing": (typed((2,), "BYTES", bytes_contents=[b"x"]), "inputs[0].contents.bytes_contents", "got 1"),
    "files of four axes": (ask((1, 2, 2, 3), PIXELS, datatype="BYTES"), "inputs[0].shape", "[N]"),
    "no files": (ask((0,), b"", datatype="BYTES"), "inputs[0].shape", "at least 1"),
    "too many files": (ask((HUGE,), b"", datatype="BYTES"), "inputs[0].shape", "at most 64"),
    "no length": (ask((1,), b"\1\0\0", datatype="BYTES"), "raw_input_contents[0]", "4 bytes"),
    "too long": (ask((1,), b"\xff\xff\xff\xff\0", datatype="BYTES"), "raw_input_contents[0]", "claims 4294967295"),
    "bytes behind": (ask((1,), prefixed(b"a") + b"b", datatype="BYTES"), "raw_input_contents[0]", "1 bytes follow"),
    "no image": (ask((1,), prefixed(b"no image"), datatype="BYTES"), "raw_input_contents[0]", "JPEG, PNG"),
    "second no image": (
        ask((2,), prefixed(png(2, 2), b"no image"), datatype="BYTES"),
        "raw_input_contents[0][1]",
        "JPEG, PNG",
    ),
    "big file": (ask((1,), prefixed(png(100, 51)), datatype="BYTES"), "raw_input_contents[0]", "limit of 5000"),
    "two sizes": (ask((2,), prefixed(png(2, 4), png(2, 5)), datatype="BYTES"), "inputs[0]", "a request of its own"),
    "two sizes by orientation": (
        ask((2,), prefixed(png(2, 4), turned_jpeg(2, 4)), datatype="BYTES"),
        "inputs[0]",
        "a request of its own",
    ),
    "shared memory": (
        with_(good(), lambda r: r.inputs[0].parameters["shared_memory_region"].MergeFrom(text("r"))),
        "inputs[0].parameters",
        "shared memory",
    ),
    "unknown output": (wanting("mask"), "outputs[0].name", "class_map, heatmap, confidence"),
    "output twice": (with_(wanting("heatmap"), lambda r: r.outputs.add(name="heatmap")), "outputs[1].name", "twice"),
    "encoding": (wanting("class_map", encoding=text("jpeg")), "outputs[0].parameters", "raw, png, zstd"),
    "encoded heatmap": (wanting("heatmap", encoding=text("png")), "outputs[0].parameters", "no encoding but raw"),
    "classification": (
        wanting("class_map", classification=pb.InferParameter(int64_param=1)),
        "outputs[0].parameters",
        "classification",
    ),
    "output into shared memory": (
        wanting("class_map", shared_memory_region=text("r")),
        "outputs[0].parameters",
        "shared memory",
    ),
    "timeout": (timeout(string_param="soon"), "parameters", "microseconds"),
    "negative timeout": (timeout(int64_param=-1), "parameters", "microseconds"),
}


@pytest.mark.parametrize(("request_", "field", "words"), BAD.values(), ids=BAD.keys())
def test_bad_requests_are_refused_and_name_the_field(
    channel: grpc.Channel, request_: pb.ModelInferRequest, field: str, words: str
) -> None:
    stub = GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request_, timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    message = caught.value.details()
    assert words in message
    assert "\n" not in message
    details = BadRequest()
    assert rpc_status.from_call(caught.value).details[0].Unpack(details)
    assert details.field_violations[0].field == field
    (answer,) = stub.ModelStreamInfer(iter([request_]), timeout=20)
    assert answer.error_message == message


def test_images_of_one_size_once_they_are_turned_are_answered(channel: grpc.Channel) -> None:
    request = ask((2,), prefixed(png(2, 4), turned_jpeg(4, 2)), datatype="BYTES")
    response = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)
    assert list(response.outputs[0].shape) == [2, 2, 4]


@pytest.mark.parametrize("name", ["nobody", "x" * 1_000_000, "\U0001f9ee" * 10_000])
def test_unknown_models_are_not_found_however_long_their_names(channel: grpc.Channel, name: str) -> None:
    stub = GRPCInferenceServiceStub(channel)
    for method, request in (
        (stub.ModelInfer, with_(good(), lambda r: setattr(r, "model_name", name))),
        (stub.ModelInfer, with_(good(), lambda r: setattr(r, "model_version", name))),
        (stub.ModelMetadata, pb.ModelMetadataRequest(name=name)),
        (stub.ModelConfig, pb.ModelConfigRequest(name=name)),
        (stub.ModelStatistics, pb.ModelStatisticsRequest(name=name)),
        (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=name)),
        (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name=name)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            method(request, timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert not stub.ModelReady(pb.ModelReadyRequest(name=name)).ready


def test_repository_is_asked_for_models_by_name(channel: grpc.Channel) -> None:
    stub = GRPCInferenceServiceStub(channel)
    for method, request, words in (
        (stub.RepositoryIndex, pb.RepositoryIndexRequest(repository_name="r"), "no names"),
        (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(repository_name="r", model_name="tiny"), "no names"),
        (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(), "names no model"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            method(request, timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in caught.value.details()


shapes = st.lists(st.integers(-1, 4) | st.sampled_from([HUGE, -HUGE - 1, 2**31]), max_size=5)
parameters = st.dictionaries(
    st.sampled_from(["encoding", "timeout", "classification", "other"]),
    st.builds(pb.InferParameter, string_param=st.text(max_size=5))
    | st.builds(pb.InferParameter, int64_param=st.integers(-5, 10**18)),
    max_size=2,
)
contents = st.builds(
    pb.InferTensorContents,
    uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=12),
    bytes_contents=st.lists(st.binary(max_size=30), max_size=3),
    fp32_contents=st.lists(st.floats(width=32), max_size=2),
)
inputs = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.just("image") | st.text(max_size=5),
    datatype=st.sampled_from(["UINT8", "BYTES", "FP32", ""]),
    shape=shapes,
    parameters=parameters,
    contents=st.none() | contents,
)
outputs = st.builds(
    pb.ModelInferRequest.InferRequestedOutputTensor,
    name=st.sampled_from(["class_map", "heatmap", "confidence", "", "mask"]),
    parameters=parameters,
)
requests = st.builds(
    pb.ModelInferRequest,
    model_name=st.sampled_from(["tiny", "", "nobody"]),
    model_version=st.sampled_from(["", "1", "0"]),
    parameters=parameters,
    inputs=st.lists(inputs, max_size=2),
    outputs=st.lists(outputs, max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=40), max_size=2),
)


@settings(max_examples=300)
@given(requests)
def test_any_request_is_answered_or_refused(channel: grpc.Channel, request_: pb.ModelInferRequest) -> None:
    stub = GRPCInferenceServiceStub(channel)
    call = stub.ModelInfer.future(request_, timeout=20)
    # A timeout that hypothesis draws may be too short.
    assert call.code() in REFUSALS | {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert (call.code() is grpc.StatusCode.OK) != bool(call.details())
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=20).live


@settings(max_examples=200)
@given(st.integers(1, 4), st.binary(max_size=200))
def test_any_bytes_as_image_files_are_refused(channel: grpc.Channel, count: int, data: bytes) -> None:
    stub = GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(ask((count,), data, datatype="BYTES"), timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=20).live


@settings(max_examples=200)
@given(st.binary(max_size=100))
def test_any_bytes_as_a_message_leave_the_server_alive(channel: grpc.Channel, data: bytes) -> None:
    send = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError):
        send(data, timeout=20)
    assert GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=20).live


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=8))
def test_elements_are_split_as_they_were_joined(elements: list[bytes]) -> None:
    assert split_elements(prefixed(*elements), len(elements), "field") == elements


@given(st.integers(0, 10), st.binary(max_size=60))
def test_bytes_are_so_many_elements_or_refused(count: int, data: bytes) -> None:
    try:
        elements = split_elements(data, count, "field")
    except InvalidFieldError:
        return
    assert prefixed(*elements) == data
    assert len(elements) == count

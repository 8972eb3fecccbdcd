"""Messages that would be far larger as objects than as bytes are refused unparsed; large requests are not."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from fcnseg.v1 import model_admin_pb2
from fcnseg.v1 import segmentation_pb2 as pb
from serving.errors import OversizedMessageError
from serving.message_size import (
    MOST_BYTES_BESIDE,
    MOST_FIELDS,
    MOST_PROBE_BYTES,
    MOST_UINT32_BYTES,
    MOST_WIDENED_BYTES,
    kind_of,
    require_few_fields,
)
from serving.oip import inference_pb2 as oip
from tests.process_memory import forget_peak, peak, resident
from tests.running_server import running_server
from tests.server_process import ServerProcess, free_port, server_process
from tests.tiny_model import write_tiny_model

SEGMENT, SEGMENT_STREAM = "/fcnseg.v1.SegmentationService/Segment", "/fcnseg.v1.SegmentationService/SegmentStream"
INFER, INFER_STREAM = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
PROBED = [REFLECTION, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]
FLOOD_BYTES = 16 << 20
PATIENCE_S = 60
FIELDS, WIDENED, BESIDE = f"more than {MOST_FIELDS} fields", "packed integers", "bytes beside its image"
REQUESTS = [
    GetMessageClass(method.input_type)
    for file in (pb, model_admin_pb2, oip)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def varint(number: int) -> bytes:
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


def holding(number: int, content: bytes) -> bytes:
    """Return a field that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def many(unit: bytes) -> bytes:
    """Return a field over and over."""
    return unit * (FLOOD_BYTES // len(unit))


UNKNOWN_GROUP = varint(100 << 3 | 3) + holding(5, b"\xff\xff") + varint(100 << 3 | 4)
LONG_TAG, LONG_SIZE = b"\xaa\x80\x80\x80\x00\0", b"\x2a\x80\x80\x80\x80\x00"
IN_SEGMENT = {
    "classes": (many(holding(10, b"")), FIELDS),
    "named classes": (many(holding(10, b"red")), FIELDS),
    "heatmap classes": (many(holding(6, b"")), FIELDS),
    "classes of regions": (holding(7, many(holding(1, b""))), FIELDS),
    "images": (many(holding(4, b"")), FIELDS),
    "unknown fields": (many(b"\xa0\x06\0"), FIELDS),
    "an unknown field": (holding(100, bytes(FLOOD_BYTES)), BESIDE),
    "a name": (holding(1, bytes(FLOOD_BYTES)), BESIDE),
    "a file before pixels": (holding(3, bytes(FLOOD_BYTES)) + holding(4, holding(3, bytes(3))), BESIDE),
}
IN_INFER = {
    "inputs": (many(holding(5, b"")), FIELDS),
    "named inputs": (many(holding(5, holding(1, b"image"))), FIELDS),
    "inputs behind a group": (UNKNOWN_GROUP + many(holding(5, b"")), FIELDS),
    "inputs with long tags": (many(LONG_TAG), FIELDS),
    "inputs with long sizes": (many(LONG_SIZE), FIELDS),
    "outputs": (many(holding(6, b"")), FIELDS),
    "raw contents": (many(holding(7, b"")), FIELDS),
    "parameters": (many(holding(4, b"")), FIELDS),
    "parameters of an input": (holding(5, many(holding(4, b""))), FIELDS),
    "typed bytes": (holding(5, holding(5, many(holding(8, b"")))), FIELDS),
    "a shape": (holding(5, many(b"\x18\x01")), FIELDS),
    "a packed shape": (holding(5, holding(3, many(b"\x01"))), WIDENED),
    "packed numbers": (holding(5, holding(5, holding(3, many(b"\x01")))), WIDENED),
    "packed small numbers": (holding(5, holding(5, holding(2, many(b"\x01")))), WIDENED),
    "typed pixels": (holding(5, holding(5, holding(4, many(b"\x01")))), WIDENED),
    "packed numbers in parts": (many(holding(5, holding(5, holding(5, bytes(4000))))), WIDENED),
    "packed floats": (holding(5, holding(5, holding(6, bytes(FLOOD_BYTES)))), BESIDE),
    "an id": (holding(3, bytes(FLOOD_BYTES)), BESIDE),
    "a parameter": (holding(4, holding(1, b"a") + holding(2, holding(3, bytes(FLOOD_BYTES)))), BESIDE),
    "an unknown field": (holding(100, bytes(FLOOD_BYTES)), BESIDE),
}
FLOODS = {
    **{f"{what}, Segment": (SEGMENT, *flood) for what, flood in IN_SEGMENT.items()},
    **{
        f"{what}, SegmentStream": (SEGMENT_STREAM, holding(2, data), words)
        for what, (data, words) in IN_SEGMENT.items()
    },
    **{f"{what}, ModelInfer": (INFER, *flood) for what, flood in IN_INFER.items()},
    **{f"{what}, ModelStreamInfer": (INFER_STREAM, *flood) for what, flood in IN_INFER.items()},
}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    with server_process(tiny_model, free_port(), "--log-level", "warning") as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", -1)]) as channel:
        yield channel


def call(channel: grpc.Channel, method: str, data: bytes) -> list[bytes]:
    """Send bytes to a method, as one message, and return what comes."""
    return list(channel.stream_stream(method)(iter([data]), timeout=PATIENCE_S))


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_is_refused_and_takes_no_more_than_a_few_times_its_bytes(
    server: ServerProcess, channel: grpc.Channel, what: str
) -> None:
    method, data, words = FLOODS[what]
    before = resident(server.pid)
    forget_peak(server.pid)
    with pytest.raises(grpc.RpcError, match=words) as refused:
        call(channel, method, data)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert peak(server.pid) - before < 4 * len(data)


@pytest.mark.parametrize("method", PROBED)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (holding(1, b"x" * MOST_PROBE_BYTES), f"take at most {MOST_PROBE_BYTES}, enough for a name"),
        (b"\xff\xff\xff", "stubs made from the server's contract"),
    ],
)
def test_what_others_cannot_take_is_the_clients_mistake(
    tiny_model: Path, caplog: pytest.LogCaptureFixture, method: str, data: bytes, words: str
) -> None:
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError, match=words) as refused:
            call(channel, method, data)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records


def infer(datatype: str, shape: list[int], *raw: bytes, **contents: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(raw_input_contents=raw)
    typed = oip.InferTensorContents(**contents) if contents else None
    request.inputs.add(name="image", datatype=datatype, shape=shape, contents=typed)
    return request


def noise(side: int) -> bytes:
    """Return a file of noise, which no format makes smaller."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


FILES = [noise(200)] * 4
LARGE = {
    "raw pixels": pb.SegmentRequest(raw=pb.RawImage(height=1000, width=1000, rgb=bytes(3_000_000))),
    "a file": pb.SegmentRequest(encoded=noise(300)),
    "a raw tensor": infer("UINT8", [2, 500, 500, 3], bytes(1_500_000)),
    "a typed tensor": infer("UINT8", [1, 1080, 1920, 3], uint_contents=np.resize(np.arange(256), 6_220_800)),
    "typed files": infer("BYTES", [4], bytes_contents=FILES),
    "raw files": infer("BYTES", [4], b"".join(len(file).to_bytes(4, "little") + file for file in FILES)),
}


@pytest.mark.parametrize("what", LARGE)
def test_large_requests_are_answered(channel: grpc.Channel, what: str) -> None:
    request = LARGE[what]
    if isinstance(request, pb.SegmentRequest):
        (alone,) = call(channel, SEGMENT, request.SerializeToString())
        (item,) = call(channel, SEGMENT_STREAM, pb.SegmentStreamRequest(request=request).SerializeToString())
        answer = pb.SegmentStreamResponse.FromString(item)
        assert answer.response.class_map == pb.SegmentResponse.FromString(alone).class_map
    else:
        (alone,) = call(channel, INFER, request.SerializeToString())
        (item,) = call(channel, INFER_STREAM, request.SerializeToString())
        answer_in_stream = oip.ModelStreamInferResponse.FromString(item).infer_response
        assert answer_in_stream == oip.ModelInferResponse.FromString(alone)


def test_all_classes_of_a_large_model_may_be_named(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(6_000)]
    model = write_tiny_model(tmp_path / "large.onnx", class_count=len(names))
    request = pb.SegmentRequest(raw=pb.RawImage(height=4, width=4, rgb=bytes(48)), classes=names).SerializeToString()
    with server_process(model, free_port()) as server, grpc.insecure_channel(server.address) as channel:
        assert len(call(channel, SEGMENT, request)) == 1


SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(0, 9),
}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Messages that the contract's methods take, with any of their fields."""
    message: Message = draw(st.sampled_from(REQUESTS))()
    fill(draw, message)
    return message


def fill(draw: st.DrawFn, message: Message) -> None:
    for found in message.DESCRIPTOR.fields:
        if draw(st.booleans()):
            set_field(draw, message, found)


def set_field(draw: st.DrawFn, message: Any, found: FieldDescriptor) -> None:
    value = getattr(message, found.name)
    many_times = range(draw(st.integers(0, 3)))
    if found.message_type is not None and found.message_type.GetOptions().map_entry:
        for _ in many_times:
            fill(draw, value[draw(st.text(max_size=9))])
    elif found.message_type is not None and found.is_repeated:
        for _ in many_times:
            fill(draw, value.add())
    elif found.message_type is not None:
        value.SetInParent()
        fill(draw, value)
    elif found.is_repeated:
        value.extend(draw(st.lists(scalars(found), max_size=20)))
    else:
        setattr(message, found.name, draw(scalars(found)))


def scalars(found: FieldDescriptor) -> st.SearchStrategy[Any]:
    if found.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=300)
    if found.type == FieldDescriptor.TYPE_STRING:
        return st.text(max_size=99)
    return SCALARS[found.cpp_type]


@given(message=messages())
def test_a_message_of_few_fields_passes(message: Message) -> None:
    require_few_fields(message.SerializeToString(), kind_of(message.DESCRIPTOR))


@given(request=st.sampled_from(REQUESTS), data=st.binary(max_size=200))
def test_bytes_of_no_meaning_pass(request: type[Message], data: bytes) -> None:
    require_few_fields(data, kind_of(request.DESCRIPTOR))


@given(message=messages(), data=st.data())
def test_damaged_messages_pass(message: Message, data: st.DataObject) -> None:
    sound = message.SerializeToString()
    place = data.draw(st.integers(0, len(sound)))
    damaged = sound[:place] + data.draw(st.binary(max_size=5)) + sound[place + data.draw(st.integers(0, 5)) :]
    require_few_fields(damaged, kind_of(message.DESCRIPTOR))


NUMBERS = st.sampled_from([1, 3, 4, 5, 6, 7, 10, 15, 16, 100, 2**29 - 1])
FIXED = st.builds(
    lambda number, long: varint(number << 3 | (1 if long else 5)) + bytes(8 if long else 4), NUMBERS, st.booleans()
)
VARINTS = st.builds(lambda number, value: varint(number << 3) + varint(value), NUMBERS, st.sampled_from([5, 2**64 - 1]))
BYTES = st.builds(holding, NUMBERS, st.binary(max_size=4))
ODD_FIELDS = st.recursive(
    FIXED | VARINTS | BYTES | st.binary(max_size=3),
    lambda inner: (
        st.builds(
            lambda number, parts: varint(number << 3 | 3) + b"".join(parts) + varint(number << 3 | 4),
            NUMBERS,
            st.lists(inner, max_size=3),
        )
        | st.builds(lambda number, parts: holding(number, b"".join(parts)), NUMBERS, st.lists(inner, max_size=3))
    ),
    max_leaves=6,
)


@given(
    before=st.lists(ODD_FIELDS, max_size=3).map(b"".join),
    unit=st.sampled_from([holding(5, b""), LONG_TAG, LONG_SIZE, holding(4, b""), UNKNOWN_GROUP]),
)
def test_no_bytes_that_the_parser_takes_hide_what_follows(before: bytes, unit: bytes) -> None:
    try:
        oip.ModelInferRequest.FromString(before + unit)
    except DecodeError:
        assume(False)
    with pytest.raises(OversizedMessageError, match=FIELDS):
        require_few_fields(before + unit * (MOST_FIELDS + 1), kind_of(oip.ModelInferRequest.DESCRIPTOR))


def test_the_limits_are_exact() -> None:
    kind = kind_of(oip.ModelInferRequest.DESCRIPTOR)
    require_few_fields(holding(5, b"") * MOST_FIELDS, kind)
    with pytest.raises(OversizedMessageError, match=FIELDS):
        require_few_fields(holding(5, b"") * (MOST_FIELDS + 1), kind)
    sizes, pixels = bytes(MOST_WIDENED_BYTES), bytes(MOST_UINT32_BYTES)
    require_few_fields(holding(5, holding(3, sizes) + holding(5, holding(4, pixels))), kind)
    for most, tensor in (
        (MOST_WIDENED_BYTES, holding(3, sizes + b"\0")),
        (MOST_UINT32_BYTES, holding(5, holding(4, pixels + b"\0"))),
    ):
        with pytest.raises(
            OversizedMessageError, match=f"{most + 1} bytes of {WIDENED}.*more than the limit of {most} for their type"
        ):
            require_few_fields(holding(5, tensor), kind)


def test_all_but_images_is_counted_together() -> None:
    segment, infer = kind_of(pb.SegmentRequest.DESCRIPTOR), kind_of(oip.ModelInferRequest.DESCRIPTOR)
    most, image = bytes(MOST_BYTES_BESIDE), bytes(MOST_BYTES_BESIDE + 1)
    file, pixels = holding(3, image), holding(4, holding(3, image))
    files, tensor = holding(5, holding(5, holding(8, image) * 2)), holding(7, image)
    for kind, data in ((segment, file), (segment, pixels), (infer, files), (infer, tensor)):
        require_few_fields(holding(1, most) + data, kind)
        with pytest.raises(OversizedMessageError, match=f"more than {MOST_BYTES_BESIDE} {BESIDE}"):
            require_few_fields(holding(1, most) + data + holding(100, b"x"), kind)
    require_few_fields(holding(3, most) + pixels, segment)
    for data in (file + file, file + pixels, pixels + file):
        with pytest.raises(OversizedMessageError, match=BESIDE):
            require_few_fields(data, segment)

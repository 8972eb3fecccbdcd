"""A real server asked with odd bytes, messages and metadata: it answers, or says what is wrong, and goes on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.v1 import segmentation_pb2 as pb
from serving.oip import inference_pb2 as oip
from tests.fuzz.mutations import examples, mutated
from tests.fuzz.test_images import SEEDS as FILES
from tests.fuzz.test_tensors import requests as infer_requests
from tests.process_memory import peak
from tests.server_process import ServerProcess, free_port, server_process

PATIENCE_S = 60.0
MOST_MEMORY = 1 << 30
EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
OPTIONS = ("--log-format", "json", "--max-image-pixels", str(1 << 20), "--max-image-side", "4096")
SEGMENT, STREAM = "/fcnseg.v1.SegmentationService/Segment", "/fcnseg.v1.SegmentationService/SegmentStream"
INFER, INFER_STREAM = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"
DESCRIBE = [
    f"/{service}/{method}"
    for service, methods in (
        ("fcnseg.v1.SegmentationService", ("ListModels", "GetModel")),
        ("inference.GRPCInferenceService", ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")),
        ("inference.GRPCInferenceService", ("RepositoryIndex", "RepositoryModelLoad", "ServerMetadata")),
        ("grpc.health.v1.Health", ("Check",)),
    )
    for method in methods
]
ONE_PIXEL = pb.SegmentRequest(raw=pb.RawImage(height=1, width=1, rgb=b"abc")).SerializeToString()


@dataclass(frozen=True)
class Asked:
    """A server and a connection to it."""

    server: ServerProcess
    channel: grpc.Channel
    log: Path

    def call(self, method: str, data: bytes, metadata: list[tuple[str, str | bytes]] | None = None) -> tuple[str, str]:
        """Send bytes to a method, as one message, and return the code and its details."""
        call = self.channel.stream_stream(method)(iter([data]), timeout=PATIENCE_S, metadata=metadata)
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        return call.code().name, call.details() or ""

    def require_law(
        self, method: str, data: bytes, metadata: list[tuple[str, str | bytes]] | None = None, *more: str
    ) -> None:
        """Send bytes, and check code and details; the server must be there still."""
        code, details = self.call(method, data, metadata)
        assert code in {*EXPECTED, *more}, f"{code}: {details}"
        assert "\n" not in details
        assert len(details) < 1200
        assert self.server.exit_code is None


@pytest.fixture(scope="module")
def asked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    log = tmp_path_factory.mktemp("log") / "log"
    with server_process(tiny_model, free_port(), *OPTIONS, log=log) as server:
        with grpc.insecure_channel(server.address) as channel:
            yield Asked(server, channel, log)
            assert Asked(server, channel, log).call(SEGMENT, ONE_PIXEL) == ("OK", "")
        assert peak(server.pid) < MOST_MEMORY
        server.begin_stop()
        assert server.wait_stopped() == 0
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    assert [line for line in lines if json.loads(line)["level"] in {"ERROR", "CRITICAL"}] == []


NAMES = st.sampled_from(["red", "green", "0", "2", "RED", "gren", "", "\u0130", "\ud7ff", "3", "-1", "r" * 300])
SIDES = st.sampled_from([0, 1, 2, 3, 4095, 4096, 4097, 2**16, 2**32 - 1]) | st.integers(0, 60)


@st.composite
def segment_requests(draw: st.DrawFn) -> pb.SegmentRequest:
    """Requests of which any field may be set to anything that its type holds."""
    request = pb.SegmentRequest(
        model_name=draw(st.sampled_from(["tiny", "", "", "other", "\0", "x" * 3000])),
        model_version=draw(st.sampled_from(["", "", "1", "2", "01", "-1", "9" * 5000])),
        encoding=draw(st.integers(0, 5)),  # type: ignore[arg-type]
        confidence=draw(st.booleans()),
        heatmap_classes=draw(st.lists(NAMES, max_size=3)),
        classes=draw(st.lists(NAMES, max_size=3)),
    )
    if draw(st.booleans()):
        height, width = draw(SIDES), draw(SIDES)
        sound = draw(st.integers(0, 3)) and height * width <= 1 << 16
        request.raw.CopyFrom(pb.RawImage(height=height, width=width, rgb=bytes(height * width * 3) if sound else b"0"))
    else:
        request.encoded = draw(mutated(FILES))
    if draw(st.booleans()):
        request.regions.CopyFrom(
            pb.RegionQuery(
                classes=draw(st.lists(NAMES, max_size=2)),
                threshold=draw(st.none() | st.floats() | st.floats(0.01, 0.9)),
                limit=draw(st.sampled_from([0, 1, 1000, 1001, 2**32 - 1])),
                min_pixels=draw(st.sampled_from([0, 1, 2**64 - 1])),
            )
        )
    if draw(st.booleans()):
        opacity = draw(st.none() | st.floats() | st.floats(0, 1))
        request.overlay.CopyFrom(pb.OverlayQuery(opacity=opacity, quality=draw(st.sampled_from([0, 1, 100, 101]))))
    return request


@examples(50)
@given(request=segment_requests())
def test_odd_requests_are_answered_or_refused(asked: Asked, request: pb.SegmentRequest) -> None:
    asked.require_law(SEGMENT, request.SerializeToString())


@examples(30)
@given(request=infer_requests())
def test_odd_tensors_are_answered_or_refused(asked: Asked, request: oip.ModelInferRequest) -> None:
    asked.require_law(INFER, request.SerializeToString(), None, "DEADLINE_EXCEEDED")  # a request may name its deadline
    asked.require_law(INFER_STREAM, request.SerializeToString())


MESSAGES = [
    ONE_PIXEL,
    pb.SegmentRequest(encoded=FILES[0], confidence=True, regions=pb.RegionQuery(threshold=0.5)).SerializeToString(),
    pb.SegmentStreamRequest(id="7", request=pb.SegmentRequest(encoded=FILES[5])).SerializeToString(),
    pb.GetModelRequest(model_name="tiny", model_version="1").SerializeToString(),
    oip.ModelInferRequest(
        model_name="tiny",
        inputs=[oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 1, 2, 3])],
        raw_input_contents=[b"abcdef"],
    ).SerializeToString(),
]


@examples(50)
@given(method=st.sampled_from([SEGMENT, STREAM, INFER, INFER_STREAM, *DESCRIBE]), data=mutated(MESSAGES))
def test_changed_bytes_are_answered_or_refused(asked: Asked, method: str, data: bytes) -> None:
    asked.require_law(method, data, None, *(["DEADLINE_EXCEEDED"] if "Infer" in method else []))


KEYS = st.sampled_from(
    ["x-request-id", "traceparent", "tracestate", "authorization", "grpc-accept-encoding", "user-agent"]
)
# What gRPC's client lets through: printable ASCII.
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200).map(str.strip)


@examples(40)
@given(metadata=st.lists(st.tuples(KEYS, WORDS) | st.tuples(st.just("x-odd-bin"), st.binary(max_size=50)), max_size=4))
def test_any_metadata_is_taken(asked: Asked, metadata: list[tuple[str, str | bytes]]) -> None:
    asked.require_law(SEGMENT, ONE_PIXEL, metadata)

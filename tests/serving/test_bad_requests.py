import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from PIL import Image

from fcnseg.client import Client
from fcnseg.errors import RequestError
from fcnseg.images import ImageLimits
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.server import ServerConfig
from serving.statuses import INTERNAL_ERROR
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.running_server import running_server
from tests.tiny_model import write_tiny_model

LIMITS = ImageLimits(max_bytes=20_000, max_pixels=5_000)
TWO_PIXELS = pb.RawImage(height=1, width=2, rgb=bytes(6))
PNG = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
WIDE_PNG = cv2.imencode(".png", np.zeros((1, 5_001, 3), np.uint8))[1].tobytes()
JPEG = cv2.imencode(".jpg", np.zeros((40, 40, 3), np.uint8))[1].tobytes()


def ask_heatmaps(*classes: str) -> pb.SegmentRequest:
    return pb.SegmentRequest(raw=TWO_PIXELS, heatmap_classes=classes)


def ask_regions(classes: Sequence[str] = (), threshold: float | None = None, limit: int = 0) -> pb.SegmentRequest:
    query = pb.RegionQuery(classes=classes, threshold=threshold, limit=limit)
    return pb.SegmentRequest(raw=TWO_PIXELS, regions=query)


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (pb.SegmentRequest(), "image", "no image"),
        (pb.SegmentRequest(encoded=b""), "encoded", "empty"),
        (pb.SegmentRequest(encoded=b"no image at all"), "encoded", "JPEG, PNG"),
        (pb.SegmentRequest(encoded=PNG[:40]), "encoded", "PNG"),
        (pb.SegmentRequest(encoded=JPEG[: len(JPEG) // 3]), "encoded", "JPEG"),
        (pb.SegmentRequest(encoded=bytes(20_001)), "encoded", "20001 bytes"),
        (pb.SegmentRequest(encoded=WIDE_PNG), "encoded", "limit of 5000"),
        (pb.SegmentRequest(raw=pb.RawImage(height=0, width=2)), "raw.height", "0"),
        (pb.SegmentRequest(raw=pb.RawImage(height=1, width=0)), "raw.width", "0"),
        (pb.SegmentRequest(raw=pb.RawImage(height=1, width=2, rgb=bytes(5))), "raw.rgb", "6 bytes of RGB; got 5"),
        (pb.SegmentRequest(raw=pb.RawImage(height=1, width=2, rgb=bytes(7))), "raw.rgb", "got 7"),
        (
            pb.SegmentRequest(raw=pb.RawImage(height=51, width=100, rgb=bytes(15_300))),
            "raw",
            "limit of 5000",
        ),
        (pb.SegmentRequest(raw=pb.RawImage(height=2**32 - 1, width=2**32 - 1)), "raw", "limit of 5000"),
        (pb.SegmentRequest(raw=TWO_PIXELS, encoding=99), "encoding", "99"),  # type: ignore[arg-type] # on purpose
        (ask_heatmaps("red", "gren"), "heatmap_classes[1]", "no class 'gren' in the model; did you mean green or red?"),
        (ask_heatmaps("3"), "heatmap_classes[0]", "there are red, green, blue"),
        (ask_heatmaps("-1"), "heatmap_classes[0]", "no class '-1'"),
        (ask_heatmaps(""), "heatmap_classes[0]", "no class ''"),
        (ask_heatmaps("red", "a" * 100_000), "heatmap_classes[1]", "100000 characters"),
        (ask_heatmaps("\u732b" * 200), "heatmap_classes[0]", "no class"),
        (ask_heatmaps(*["red"] * 4), "heatmap_classes", "4 names where the model has 3 classes"),
        (ask_regions(classes=["blue", "cat"]), "regions.classes[1]", "no class 'cat'"),
        (ask_regions(classes=["blue"] * 4), "regions.classes", "4 names where the model has 3 classes"),
        (ask_regions(threshold=0), "regions.threshold", "threshold is 0;"),
        (ask_regions(threshold=1), "regions.threshold", "from 0.01 to below 1"),
        (ask_regions(threshold=0.0099), "regions.threshold", "0.0099"),
        (ask_regions(threshold=-0.5), "regions.threshold", "-0.5"),
        (ask_regions(threshold=float("nan")), "regions.threshold", "nan"),
        (ask_regions(limit=1001), "regions.limit", "from 1 to 1000"),
        (ask_regions(limit=2**32 - 1), "regions.limit", "4294967295"),
    ],
)
def test_invalid_argument_names_its_field(
    tiny_model: Path, request_: pb.SegmentRequest, field: str, words: str
) -> None:
    with running_server(tiny_model, ServerConfig(limits=LIMITS)) as server:
        error = refusal(server.address, request_)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error) == {field: error.details()}
    assert words in error.details()
    assert "\n" not in error.details()


def refusal(address: str, request: pb.SegmentRequest) -> grpc.Call:
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        SegmentationServiceStub(channel).Segment(request, timeout=20)
    assert isinstance(caught.value, grpc.Call)
    return caught.value


def violations(error: grpc.Call) -> dict[str, str]:
    """Return what is said of each field, beside the status' own message."""
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.message == error.details()
    bad_request = BadRequest()
    assert status.details[0].Unpack(bad_request)
    return {violation.field: violation.description for violation in bad_request.field_violations}


def test_images_at_the_limits_are_answered(tiny_model: Path) -> None:
    config = ServerConfig(limits=ImageLimits(max_bytes=len(PNG), max_pixels=5_000))
    with running_server(tiny_model, config) as server, Client(server.address) as client:
        assert client.segment(PNG).class_map.shape == (4, 4)
        assert client.segment(np.zeros((50, 100, 3), np.uint8)).class_map.shape == (50, 100)


def test_message_far_beyond_the_limits_is_refused_by_the_transport(tiny_model: Path) -> None:
    with running_server(tiny_model, ServerConfig(limits=LIMITS)) as server, Client(server.address) as client:
        with pytest.raises(RequestError) as caught:
            client.segment(bytes(2_000_000))
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert client.segment(PNG).class_map.shape == (4, 4)


def test_the_server_goes_on_after_bad_requests(tiny_model: Path) -> None:
    with running_server(tiny_model) as server, Client(server.address) as client:
        for _ in range(20):
            with pytest.raises(RequestError):
                client.segment(b"rubbish")
        assert client.segment(PNG).class_map.shape == (4, 4)


def name_three(client: Client) -> object:
    return client.segment(PNG, model="three")


def name_nothing(client: Client) -> object:
    return client.segment(PNG)


def name_a_missing_version(client: Client) -> object:
    return client.get_model("one", "7")


@pytest.mark.parametrize(
    ("ask", "words"),
    [(name_three, "one, two"), (name_nothing, "one, two"), (name_a_missing_version, "whose versions are 1")],
)
def test_not_found_lists_what_there_is(tmp_path: Path, ask: Callable[[Client], object], words: str) -> None:
    paths = [write_tiny_model(tmp_path / f"{name}.onnx") for name in ("one", "two")]
    with running_server(paths) as server, Client(server.address) as client, pytest.raises(RequestError) as caught:
        ask(client)
    assert caught.value.code == "NOT_FOUND"
    assert words in str(caught.value)


def test_a_fault_of_the_server_is_logged_whole_and_told_in_a_fixed_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tiny_model(tmp_path / "broken.onnx", fails_on_magenta=True)
    with (
        caplog.at_level(logging.ERROR, "serving"),
        running_server(path) as server,
        Client(server.address) as client,
        pytest.raises(RequestError) as caught,
    ):
        client.segment(np.full((4, 4, 3), (255, 0, 255), np.uint8))
    assert caught.value.code == "INTERNAL"
    assert str(caught.value) == f"server {server.address}: {INTERNAL_ERROR}"
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "Reshape" in str(record.exc_info[1])


@pytest.mark.parametrize(
    "method", ["fcnseg.v1.SegmentationService/Segment", "inference.GRPCInferenceService/ModelInfer"]
)
def test_bytes_that_are_no_message_are_the_clients_mistake(
    tiny_model: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError, match="stubs made from the server's contract") as caught:
            channel.unary_unary(f"/{method}")(b"\xff\xff\xff", timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records


def test_bytes_that_are_no_message_end_a_stream_after_the_answers_before_them(tiny_model: Path) -> None:
    good = pb.SegmentStreamRequest(id="good", request=pb.SegmentRequest(encoded=PNG)).SerializeToString()
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream("/fcnseg.v1.SegmentationService/SegmentStream")(iter([good, b"\xff"]), timeout=10)
        assert pb.SegmentStreamResponse.FromString(next(call)).id == "good"
        with pytest.raises(grpc.RpcError, match="stubs made from the server's contract") as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("size", "wanted", "field", "words"),
    [
        (
            (8192, 8193),
            pb.SegmentRequest(encoding=pb.CLASS_MAP_ENCODING_COCO_RLE),
            "encoding",
            "a class map of 8193 x 8192 pixels is beyond what COCO's tools encode",
        ),
        (
            (65_501, 1),
            pb.SegmentRequest(overlay=pb.OverlayQuery()),
            "overlay",
            "a JPEG has at most 65500 pixels a side",
        ),
    ],
    ids=["run lengths", "overlay"],
)
def test_what_cannot_be_written_of_an_image_is_refused_before_it_is_decoded(
    tiny_model: Path, size: tuple[int, int], wanted: pb.SegmentRequest, field: str, words: str
) -> None:
    content = io.BytesIO()
    Image.new("1", size).save(content, "PNG")
    wanted.encoded = content.getvalue()
    gated = GatedSegmenter(tiny_model)
    gated.gate.set()
    config = ServerConfig(limits=ImageLimits(max_pixels=2**27))
    with running_server(registry_of(gated, tiny_model), config) as server:
        error = refusal(server.address, wanted)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    ((violated, message),) = violations(error).items()
    assert violated == field
    assert words in message
    assert not gated.batches

import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fcnseg
from fcnseg.client import Client
from fcnseg.errors import ImageError, ImageTooLargeError, RequestError, UsageError
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.regions import RegionQuery
from fcnseg.resample import resample_to_pixels
from fcnseg.types import ClassInfo
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import (
    SegmentationServiceServicer,
    add_SegmentationServiceServicer_to_server,
)
from serving.server import ServerConfig
from tests.running_server import running_server
from tests.tiny_model import tiny_info, write_tiny_model

IMAGE = np.full((4, 6, 3), (0, 0, 255), np.uint8)


def free_port() -> int:
    """Return a port outside the range that systems hand out: no other program gets it in the meantime, and a client
    that tries it cannot connect to itself.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("no free port")


def test_path_bytes_and_pixels_are_all_taken(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "blue.png"
    cv2.imwrite(str(path), IMAGE[:, :, ::-1])
    with running_server(tiny_model) as server, Client(server.address) as client:
        answers = [client.segment(image) for image in (path, str(path), path.read_bytes(), IMAGE, IMAGE[:, ::-1])]
    assert all(a.class_map.tolist() == [[2] * 6] * 4 for a in answers)


def test_model_is_described(tmp_path: Path) -> None:
    info = tiny_info(licence="free")
    limits = ImageLimits(max_bytes=123, max_pixels=456)
    path = write_tiny_model(tmp_path / "cat.onnx", licence="free")
    with running_server(path, ServerConfig(limits=limits)) as server, Client(server.address) as client:
        model = client.get_model()
        assert client.list_models() == (model,)
    assert (model.name, model.version, model.device) == ("cat", "1", "cpu")
    assert (model.architecture, model.variant, model.licence) == ("tiny", "heatmap", "free")
    assert model.classes[0] == ClassInfo(0, "red", (255, 0, 0))
    assert model.classes == info.label_map.classes
    assert model.label_map_hash == info.label_map.hash
    assert model.metrics == {"mean_iou": 0.5}
    assert model.output_stride == (2, 2)
    assert model.image_limits == limits


def test_refusal_of_a_file_names_the_file_and_the_field(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rubbish.jpg"
    path.write_bytes(b"rubbish")
    with (
        running_server(tiny_model) as server,
        Client(server.address) as client,
        pytest.raises(RequestError, match=f"image {path}: server {server.address}: ") as caught,
    ):
        client.segment(path)
    assert (caught.value.code, caught.value.field, caught.value.exit_code) == ("INVALID_ARGUMENT", "encoded", 2)


def test_unknown_model_is_not_found(tiny_model: Path) -> None:
    with (
        running_server(tiny_model) as server,
        Client(server.address) as client,
        pytest.raises(RequestError, match="there are tiny") as caught,
    ):
        client.segment(IMAGE, model="dog")
    assert (caught.value.code, caught.value.field, caught.value.exit_code) == ("NOT_FOUND", None, 2)


def test_unreachable_server_is_one_line_with_the_address() -> None:
    address = f"127.0.0.1:{free_port()}"
    with Client(address) as client, pytest.raises(RequestError, match=f"no server answers at {address}") as caught:
        client.segment(IMAGE)
    assert (caught.value.code, caught.value.exit_code) == ("UNAVAILABLE", 1)
    assert "\n" not in str(caught.value)


def test_deadline_is_told_with_the_seconds(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "slow.onnx", work_rounds=8000)
    with (
        running_server(path) as server,
        Client(server.address, timeout_s=0.2) as client,
        pytest.raises(RequestError, match=r"did not answer within 0\.2 s") as caught,
    ):
        client.segment(IMAGE)
    assert caught.value.code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    "target", ["localhost", "", "127.0.0.1:", "127.0.0.1:http", ":50051", "127.0.0.1:99999", "http://127.0.0.1:50051"]
)
def test_address_without_a_port_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        Client(target)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_array_that_is_no_image_is_refused_before_it_is_sent(image: NDArray[np.uint8]) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ImageError, match="uint8"):
        client.segment(image)


def test_missing_file_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ImageError, match=r"gone\.jpg cannot be read: No such file"):
        client.segment(tmp_path / "gone.jpg")


def test_request_beyond_the_clients_limit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(bytes(5000))
    with Client("127.0.0.1:1", max_message_bytes=1000) as client:
        for image in (path, path.read_bytes(), np.zeros((50, 50, 3), np.uint8)):
            with pytest.raises(ImageTooLargeError, match="limit of 1000"):
                client.segment(image)


def test_waiting_ends_when_the_server_comes_up(tiny_model: Path) -> None:
    port = free_port()
    ready = threading.Event()

    def wait() -> None:
        with Client(f"127.0.0.1:{port}") as client:
            client.wait_until_ready(20)
            ready.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.3)
    assert not ready.is_set()
    with running_server(tiny_model, ServerConfig(port=port)):
        waiter.join(20)
    assert ready.is_set()


def test_waiting_gives_up_after_its_time() -> None:
    with Client(f"127.0.0.1:{free_port()}") as client:
        started = time.monotonic()
        with pytest.raises(RequestError):
            client.wait_until_ready(0.5)
        assert time.monotonic() - started < 5


def test_encodings_differ_on_the_wire_alone(tiny_model: Path) -> None:
    with running_server(tiny_model) as server, Client(server.address) as client:
        answers = {encoding: client.segment(IMAGE, encoding=encoding) for encoding in Encoding}
    assert answers[Encoding.RAW].data == bytes([2] * 24)
    assert answers[Encoding.PNG].data.startswith(b"\x89PNG")
    assert answers[Encoding.ZSTD].data.startswith(b"\x28\xb5\x2f\xfd")
    assert len({a.class_map.tobytes() for a in answers.values()}) == 1


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_timeout_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(UsageError, match="timeout is"):
        Client("127.0.0.1:50051", timeout_s=timeout_s)


@pytest.mark.parametrize("image", [None, [1, 2], bytearray(b"x"), Image.new("RGB", (2, 2))])
def test_what_is_no_image_is_refused_alike_here_and_offline(tiny_model: Path, image: object) -> None:
    with pytest.raises(ImageError, match="must be a path, the bytes") as offline:
        fcnseg.load(tiny_model, "cpu").segment(image)  # type: ignore[arg-type]
    with Client("127.0.0.1:1") as client, pytest.raises(ImageError) as remote:
        client.segment(image)  # type: ignore[arg-type]
    assert str(remote.value) == str(offline.value)


def test_a_heatmap_is_brought_to_the_images_pixels_by_its_grid(tiny_model: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    offline = fcnseg.load(tiny_model, "cpu")
    expected = resample_to_pixels(offline.segment(image).heatmap[1], offline.info.geometry, 9, 14)
    with running_server(tiny_model) as server, Client(server.address) as client:
        answer = client.segment(image, heatmaps=["green"])
    assert answer.grid is not None
    assert np.array_equal(resample_to_pixels(answer.heatmaps[0].scores, answer.grid, 9, 14), expected)


@pytest.mark.parametrize(
    ("heatmaps", "regions", "field"),
    [(("red", "gren"), None, "heatmap_classes[1]"), ((), RegionQuery(("gren",)), "regions.classes[0]")],
)
def test_an_unknown_class_is_refused_with_the_field_and_the_closest(
    tiny_model: Path, heatmaps: tuple[str, ...], regions: RegionQuery | None, field: str
) -> None:
    with (
        running_server(tiny_model) as server,
        Client(server.address) as client,
        pytest.raises(RequestError, match="did you mean green") as caught,
    ):
        client.segment(IMAGE, heatmaps=heatmaps, regions=regions)
    assert (caught.value.code, caught.value.field, caught.value.exit_code) == ("INVALID_ARGUMENT", field, 2)


@contextmanager
def server_that_answers(response: pb.SegmentResponse) -> Iterator[str]:
    """A server of another make, which gives one answer whatever it is asked; yield its address."""

    class Fixed(SegmentationServiceServicer):
        def Segment(  # noqa: N802 - gRPC calls methods by the contract's names
            self,
            request: pb.SegmentRequest,  # noqa: ARG002
            context: object,  # noqa: ARG002
        ) -> pb.SegmentResponse:
            return response

    server = grpc.server(ThreadPoolExecutor(1))
    add_SegmentationServiceServicer_to_server(Fixed(), server)  # type: ignore[no-untyped-call] # generated
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


ONE_PIXEL = pb.ClassMap(height=1, width=1, type=pb.CLASS_MAP_TYPE_UINT8, encoding=pb.CLASS_MAP_ENCODING_RAW, data=b"0")


def test_a_server_that_knows_no_heatmaps_is_named_old() -> None:
    with server_that_answers(pb.SegmentResponse(class_map=ONE_PIXEL)) as address, Client(address) as client:
        assert client.segment(IMAGE).class_map.shape == (1, 1)
        for asked in ({"heatmaps": ("red",)}, {"regions": RegionQuery()}):
            with pytest.raises(RequestError, match=f"server at {address} answers without heatmaps .* update"):
                client.segment(IMAGE, **asked)  # type: ignore[arg-type]


def test_a_heatmap_that_does_not_fit_its_grid_is_told() -> None:
    grid = pb.HeatmapGrid(height=2, width=2, stride=pb.Stride(y=8, x=8))
    broken = pb.Heatmap(info=pb.Class(name="red"), scores=bytes(12), probabilities=bytes(16))
    response = pb.SegmentResponse(class_map=ONE_PIXEL, heatmap_grid=grid, heatmaps=[broken])
    with (
        server_that_answers(response) as address,
        Client(address) as client,
        pytest.raises(RequestError, match="sent a broken heatmap") as caught,
    ):
        client.segment(IMAGE, heatmaps=("red",))
    assert caught.value.code == "INTERNAL"

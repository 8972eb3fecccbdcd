import functools
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

import fcnseg
from fcnseg import render, rle
from fcnseg.client import Client
from fcnseg.errors import (
    ImageError,
    ImageTooLargeError,
    InvalidRequestError,
    RemoteModelNotFoundError,
    RequestError,
    RequestTimeoutError,
    ServerUnavailableError,
    UsageError,
)
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.pictures import encode_jpeg
from fcnseg.query import OverlayQuery
from fcnseg.regions import RegionQuery
from fcnseg.resample import resample_to_pixels
from fcnseg.types import ClassArea, ClassInfo, LabelMap
from fcnseg.v1 import segmentation_pb2 as pb
from serving.batcher import BatchingConfig
from serving.registry import ModelRegistry
from serving.server import ServerConfig
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.other_server import ONE_PIXEL, server_that_answers
from tests.running_server import CPU_CONFIG, RunningServer, running_server
from tests.server_process import free_port
from tests.tiny_model import tiny_info, write_tiny_model

IMAGE = np.full((4, 6, 3), (0, 0, 255), np.uint8)


def test_path_bytes_and_pixels_are_all_taken(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "blue.png"
    cv2.imwrite(str(path), IMAGE[:, :, ::-1])
    with running_server(tiny_model) as server, Client(server.address) as client:
        answers = [client.segment(image) for image in (path, str(path), path.read_bytes(), IMAGE, IMAGE[:, ::-1])]
    assert all(a.class_map.tolist() == [[2] * 6] * 4 for a in answers)


def test_model_is_described(tmp_path: Path) -> None:
    info = tiny_info(licence="free")
    limits = ImageLimits(max_bytes=123, max_pixels=456, max_side=78)
    path = write_tiny_model(tmp_path / "cat.onnx", licence="free")
    config = replace(
        CPU_CONFIG, batching=BatchingConfig(max_batch=1, max_queue=5), max_memory=10**9, warm_sizes=((8, 12),)
    )
    registry = ModelRegistry([path], config)
    with running_server(registry, ServerConfig(limits=limits)) as server, Client(server.address) as client:
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
    assert model.execution.provider == "CPUExecutionProvider"
    assert model.execution.runtime == onnxruntime.__version__
    assert (model.execution.cudnn, model.execution.precision, model.execution.threads) == (None, "fp32", 1)
    assert {p.provider for p in model.execution.placements} == {"CPUExecutionProvider"}
    assert any(p.operator == "Conv" and p.image_sized and p.nodes == 1 for p in model.execution.placements)
    assert (model.batching.max_batch, model.batching.max_queue) == (1, 5)
    assert 0 < model.memory_limits.max_admitted_bytes <= 10**9
    assert model.memory_limits.bytes_per_pixel > 0
    assert model.memory_limits.max_request_bytes > 456 * 3
    assert (model.warm_sizes, model.cold_sizes) == (((8, 12),), 0)


def test_refusal_of_a_file_names_the_file_and_the_field(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rubbish.jpg"
    path.write_bytes(b"rubbish")
    with (
        running_server(tiny_model) as server,
        Client(server.address) as client,
        pytest.raises(InvalidRequestError, match=f"image {path}: server {server.address}: ") as caught,
    ):
        client.segment(path)
    assert (caught.value.code, caught.value.field, caught.value.exit_code) == ("INVALID_ARGUMENT", "encoded", 2)
    assert [v.field for v in caught.value.violations] == ["encoded"]


def test_unknown_model_is_not_found(tiny_model: Path) -> None:
    with (
        running_server(tiny_model) as server,
        Client(server.address) as client,
        pytest.raises(RemoteModelNotFoundError, match="which serves tiny") as caught,
    ):
        client.segment(IMAGE, model="dog")
    assert (caught.value.code, caught.value.field, caught.value.exit_code) == ("NOT_FOUND", None, 2)


def test_unreachable_server_is_one_line_with_the_address() -> None:
    address = f"127.0.0.1:{free_port()}"
    message = f"no server answers at {address}"
    with Client(address, retries=0) as client, pytest.raises(ServerUnavailableError, match=message) as caught:
        client.segment(IMAGE)
    assert (caught.value.code, caught.value.exit_code) == ("UNAVAILABLE", 1)
    assert "\n" not in str(caught.value)


def test_deadline_is_told_with_the_seconds(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    with (
        running_server(registry_of(segmenter, tiny_model)) as server,
        Client(server.address, timeout_s=0.2) as client,
    ):
        with pytest.raises(RequestTimeoutError, match=r"did not answer within 0\.2 s") as caught:
            client.segment(IMAGE)
        segmenter.gate.set()
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


def test_pixels_beyond_two_gigabytes_are_refused_before_they_are_copied() -> None:
    image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (27_000, 27_000, 3))
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(ImageTooLargeError, match="2187000000 bytes, more than the client's limit of 1073741824"),
    ):
        client.segment(image)


def test_waiting_ends_when_the_server_comes_up(tiny_model: Path) -> None:
    port = free_port()
    ready = threading.Event()

    def wait() -> None:
        with Client(f"127.0.0.1:{port}") as client:
            client.wait_until_ready(60)
            ready.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.3)
    assert not ready.is_set()
    with running_server(tiny_model, ServerConfig(port=port)):
        waiter.join(60)
    assert ready.is_set()


def test_waiting_gives_up_after_its_time() -> None:
    with (
        Client(f"127.0.0.1:{free_port()}") as client,
        pytest.raises(RequestTimeoutError, match=r"within 0\.5 s"),
    ):
        client.wait_until_ready(0.5)


def test_encodings_differ_on_the_wire_alone(tiny_model: Path) -> None:
    with running_server(tiny_model) as server, Client(server.address) as client:
        answers = {encoding: client.segment(IMAGE, encoding=encoding) for encoding in Encoding}
    assert answers[Encoding.RAW].data == bytes([2] * 24)
    assert (answers[Encoding.COCO_RLE].data, dict(answers[Encoding.COCO_RLE].runs)) == (b"", {2: b"0h0"})
    assert not answers[Encoding.RAW].runs
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


def test_a_masked_array_is_sent_as_the_pixels_that_it_holds(tiny_model: Path) -> None:
    image = np.ma.masked_array(IMAGE, mask=np.ones_like(IMAGE))
    with running_server(tiny_model) as server, Client(server.address) as client:
        answer = client.segment(image).class_map
    assert np.array_equal(answer, fcnseg.load(tiny_model, "cpu").segment(image).class_map)


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


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ({"heatmaps": ("red",)}, "heatmaps and regions"),
        ({"regions": RegionQuery()}, "heatmaps and regions"),
        ({"confidence": True}, "confidence"),
        ({"overlay": True}, "overlay"),
        ({"classes": ["red"], "confidence": True}, "confidence and a choice of classes"),
    ],
)
def test_a_server_that_does_not_know_what_is_asked_is_named_old(asked: dict[str, object], missing: str) -> None:
    with server_that_answers(pb.SegmentResponse(class_map=ONE_PIXEL)) as address, Client(address) as client:
        assert client.segment(IMAGE).class_map.shape == (1, 1)
        with pytest.raises(RequestError, match=f"server at {address} answers without {missing}: .* update") as caught:
            client.segment(IMAGE, **asked)  # type: ignore[arg-type]
    assert caught.value.code == "UNIMPLEMENTED"


def test_a_heatmap_that_does_not_fit_its_grid_is_told() -> None:
    grid = pb.HeatmapGrid(height=2, width=2, stride=pb.Stride(y=8, x=8))
    broken = pb.Heatmap(info=pb.Class(name="red"), scores=bytes(12), probabilities=bytes(16))
    response = pb.SegmentResponse(class_map=ONE_PIXEL, heatmap_grid=grid, heatmaps=[broken])
    with (
        server_that_answers(response) as address,
        Client(address) as client,
        pytest.raises(RequestError, match="sent a broken answer: a heatmap of 2 x 2 cells has 12 bytes") as caught,
    ):
        client.segment(IMAGE, heatmaps=("red",))
    assert caught.value.code == "INTERNAL"


def run(class_id: int, counts: bytes) -> pb.ClassRuns:
    return pb.ClassRuns(id=class_id, counts=counts)


RLE = pb.CLASS_MAP_ENCODING_COCO_RLE


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (pb.SegmentResponse(), "encoding 0 and type 0 of its class map are unknown here; install"),
        (pb.SegmentResponse(class_map=pb.ClassMap(type=1, encoding=1, height=1, width=2, data=b"0")), "got 1"),
        (pb.SegmentResponse(class_map=pb.ClassMap(type=1, encoding=RLE, height=1, width=1)), "without a class"),
        (
            pb.SegmentResponse(
                class_map=pb.ClassMap(type=1, encoding=RLE, height=1, width=1, runs=[run(1, b"01"), run(1, b"01")])
            ),
            "two masks of one id",
        ),
        (
            pb.SegmentResponse(
                class_map=ONE_PIXEL, confidence=pb.ConfidenceMap(height=2, width=1, encoding=1, data=b"00")
            ),
            "a confidence map of 2 x 1 pixels",
        ),
        (
            pb.SegmentResponse(
                class_map=ONE_PIXEL, confidence=pb.ConfidenceMap(height=1, width=1, encoding=RLE, data=b"0")
            ),
            "in encoding 4",
        ),
    ],
)
def test_a_broken_answer_is_told_in_one_line(response: pb.SegmentResponse, message: str) -> None:
    with (
        server_that_answers(response) as address,
        Client(address) as client,
        pytest.raises(RequestError, match=f"server {address} sent a broken answer: .*{message}") as caught,
    ):
        client.segment(IMAGE)
    assert caught.value.code == "INTERNAL"
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a model file whose ids take two bytes."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "many.onnx", class_count=300)


@pytest.fixture(scope="module")
def both(tiny_model: Path, many_classes: Path) -> Iterator[RunningServer]:
    """A server of both models."""
    with running_server([tiny_model, many_classes]) as server:
        yield server


images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)))


@settings(max_examples=25)
@given(images, st.sampled_from(Encoding), st.booleans(), st.data())
def test_every_encoding_brings_the_offline_answer(
    both: RunningServer,
    tiny_model: Path,
    many_classes: Path,
    image: NDArray[np.uint8],
    encoding: Encoding,
    many: bool,  # noqa: FBT001 - drawn
    data: st.DataObject,
) -> None:
    offline = offline_model(many_classes if many else tiny_model)
    expected = offline.segment(image, confidence=True)
    subset = data.draw(st.lists(st.sampled_from([c.name for c in offline.info.label_map.classes[:5]]), unique=True))
    with Client(both.address) as client:
        answer = client.segment(
            image, model="many" if many else "tiny", encoding=encoding, confidence=True, classes=subset
        )
    ids = expected.class_map
    if subset:
        chosen = np.isin(ids, [offline.info.label_map.find(name).id for name in subset])
        assert answer.other_id == (65535 if many else 255)
        ids = np.where(chosen, ids, answer.other_id).astype(ids.dtype)
    else:
        assert answer.other_id is None
    assert answer.class_map.dtype == ids.dtype
    np.testing.assert_array_equal(answer.class_map, ids)
    assert expected.confidence is not None
    np.testing.assert_array_equal(answer.confidence, expected.confidence)
    assert (answer.encoding, answer.batch_size) == (encoding, 1)
    assert answer.classes == tuple(area for area in expected.classes if not subset or area.name in subset)
    if encoding is Encoding.COCO_RLE:
        assert answer.runs == rle.encode(ids, answer.other_id)


def test_classes_of_a_server_that_tells_no_colours_have_the_usual_ones() -> None:
    area = pb.ClassArea(id=1, name="cat", pixel_count=1, fraction=1.0)
    with (
        server_that_answers(pb.SegmentResponse(class_map=ONE_PIXEL, classes=[area])) as address,
        Client(address) as client,
    ):
        (found,) = client.segment(IMAGE).classes
    assert found == ClassArea(LabelMap.from_names(["background", "cat"]).classes[1], 1, 1.0)


@functools.cache
def offline_model(path: Path) -> fcnseg.Segmenter:
    return fcnseg.load(path, "cpu", threads=1)


def test_the_overlay_is_the_offline_one(both: RunningServer, tiny_model: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    offline = offline_model(tiny_model).segment(image)
    with Client(both.address) as client:
        plain = client.segment(image, model="tiny")
        drawn = client.segment(image, model="tiny", overlay=True)
        fine = client.segment(image, model="tiny", overlay=OverlayQuery(opacity=0.25, quality=100))
    assert plain.overlay is None
    assert plain.confidence is None
    assert drawn.overlay == encode_jpeg(render.overlay(image, offline.class_map, offline.label_map, 0.5))
    assert fine.overlay == encode_jpeg(render.overlay(image, offline.class_map, offline.label_map, 0.25), 100)


@pytest.mark.parametrize(("opacity", "quality"), [(-0.1, 92), (1.1, 92), (float("nan"), 92), (0.5, 0), (0.5, 101)])
def test_an_overlay_that_cannot_be_drawn_is_refused_before_it_is_sent(opacity: float, quality: int) -> None:
    with pytest.raises(UsageError, match="the overlay's"):
        OverlayQuery(opacity, quality)


@pytest.mark.parametrize("asked", [{"model": "\udcff"}, {"version": "\udcff"}, {"heatmaps": ["a", "\udcff"]}])
def test_a_name_that_is_no_text_is_refused_in_one_line(asked: dict[str, Any]) -> None:
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(UsageError, match=r"(names|is) '\\udcff', which is not Unicode text"),
    ):
        client.segment(np.zeros((2, 2, 3), np.uint8), **asked)


@pytest.mark.parametrize(
    "ask", [Client.get_model, Client.load_model, Client.unload_model, Client.reload_model], ids=lambda ask: ask.__name__
)
def test_a_name_of_a_model_that_is_no_text_is_refused_in_one_line(ask: Callable[[Client, str], object]) -> None:
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(UsageError, match=r"model is '\\udcff', which is not Unicode text; no server has it"),
    ):
        ask(client, "\udcff")


def test_one_text_is_no_list_of_classes() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(UsageError, match=r"give a list of names, such as \['red'\]"):
        client.segment(IMAGE, classes="red")


@pytest.mark.parametrize("ask", [RegionQuery, lambda names: fcnseg.FolderOptions(heatmaps=names)])
def test_a_generator_of_classes_is_refused_and_not_taken_for_all_of_them(ask: Callable[[Any], object]) -> None:
    with pytest.raises(UsageError, match="is a generator, which can be read only once; give a list of names"):
        ask(name for name in ("red", "green"))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"version": 2}, "version is 2; give it as text, such as '2'"),
        ({"model": Path("cat")}, "model is .*; give it as text, such as 'cat'"),
        ({"classes": [3]}, "classes has 3; give a class by its name, or its id as text, such as '3'"),
        ({"heatmaps": [3]}, "heatmaps has 3; give"),
        ({"classes": iter(["red"])}, "classes is a list_iterator, which can be read only once"),
    ],
)
def test_a_number_is_no_name_and_an_iterator_no_list(asked: dict[str, Any], words: str) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(UsageError, match=words):
        client.segment(IMAGE, **asked)


def test_a_number_is_no_version_wherever_one_is_given() -> None:
    with Client("127.0.0.1:1") as client:
        for call in (client.get_model, client.unload_model):
            with pytest.raises(UsageError, match="version is 2; give it as text"):
                call("cat", cast("str", 2))
        for load in (client.load_model, client.reload_model):
            with pytest.raises(UsageError, match="model is 2; give it as text"):
                load(cast("str", 2))


def test_an_encoding_that_is_none_is_refused_before_it_is_sent() -> None:
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(UsageError, match="no encoding 'jpeg'; there are raw, zstd, png, coco_rle"),
    ):
        client.segment(IMAGE, encoding=cast("Encoding", "jpeg"))


def test_regions_that_are_no_query_are_refused_before_they_are_sent() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(UsageError, match="regions is True; give a RegionQuery"):
        client.segment(IMAGE, regions=cast("RegionQuery", True))


def test_a_path_is_no_tls() -> None:
    with pytest.raises(UsageError, match=r"tls is 'ca.pem'; give True, or ClientTls"):
        Client("127.0.0.1:1", tls=cast("bool", "ca.pem"))


def test_threads_share_a_client(both: RunningServer, tiny_model: Path) -> None:
    rng = np.random.default_rng(2)
    photos = [rng.integers(0, 256, (10 + i, 20, 3), dtype=np.uint8) for i in range(24)]
    with Client(both.address) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda image: client.segment(image, model="tiny"), photos))
    for image, answer in zip(photos, answers, strict=True):
        np.testing.assert_array_equal(answer.class_map, offline_model(tiny_model).segment(image).class_map)


def test_answers_are_shown_in_one_line(tmp_path: Path) -> None:
    many = write_tiny_model(tmp_path / "many.onnx", class_count=300)
    twenty_classes = np.zeros((4, 40, 3), np.uint8)
    twenty_classes[..., 0] = np.arange(40) // 2
    with running_server(many) as server, Client(server.address) as client:
        model = client.get_model()
        (item,) = client.segment_stream([twenty_classes], confidence=True, overlay=True, encoding=Encoding.RAW)
        none = client.segment(twenty_classes, classes=["200"])
    names = [info.name for info in model.classes]
    shares = ", ".join(f"{name} 5.0%" for name in names[:5])
    shown = f"<RemoteSegmentation of 4 x 40 pixels by many version 1: {shares} and 15 more>"
    assert repr(item) == f"StreamItem(id=0, segmentation={shown}, error=None)"
    assert repr(none) == "<RemoteSegmentation of 4 x 40 pixels by many version 1: no class>"
    assert repr(model) == "<RemoteModel many version 1: heatmap of tiny, 300 classes, on cpu>"


def test_a_client_is_told_by_its_address_and_cannot_be_sent_elsewhere() -> None:
    with Client("127.0.0.1:1", token="secret") as client:  # noqa: S106
        assert repr(client) == "Client('127.0.0.1:1')"
        with pytest.raises(UsageError, match="make another there"):
            pickle.dumps(client)


@pytest.mark.parametrize("retries", [-1, 5])
def test_more_retries_than_grpc_makes_are_refused(retries: int) -> None:
    with pytest.raises(UsageError, match="it must be from 0 to 4"):
        Client("127.0.0.1:50051", retries=retries)


@pytest.mark.parametrize("size", [0, 2**31])
def test_a_limit_on_messages_that_is_none_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="largest message is"):
        Client("127.0.0.1:50051", max_message_bytes=size)

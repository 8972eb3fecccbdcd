import json
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import fcnseg
from fcnseg.commands.request import request
from fcnseg.commands.segment import segment
from fcnseg.errors import RequestError, ServerUnavailableError, UsageError
from fcnseg.v1 import segmentation_pb2 as pb
from tests.other_server import server_that_answers
from tests.running_server import running_server
from tests.server_process import free_port
from tests.tiny_model import write_tiny_model


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(request, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
    return result.output


def test_png_is_indexed_in_the_classes_colours(tiny_model: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "masks" / "mask.png"
    expected = fcnseg.load(tiny_model, "cpu").segment(photo)
    with running_server(tiny_model) as server:
        text = run(server.address, photo, "-o", output)
    with Image.open(output) as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), expected.class_map)
        assert mask.getpalette()[:9] == [255, 0, 0, 0, 255, 0, 0, 0, 255]
    for area in expected.classes:
        assert area.info.name in text
        assert f"{area.fraction:.1%}" in text
    assert "tiny (version 1), 30x40 pixels (HxW)" in text
    assert "infer" in text
    assert [f.name for f in output.parent.iterdir()] == ["mask.png"]


def test_npy_holds_the_ids(tmp_path: Path, photo: Path) -> None:
    path = write_tiny_model(tmp_path / "many.onnx", class_count=300)
    output = tmp_path / "mask.NPY"
    with running_server(path) as server:
        run(server.address, photo, "-o", output)
    ids = np.load(output)
    assert ids.dtype == np.uint16
    np.testing.assert_array_equal(ids, fcnseg.load(path, "cpu").segment(photo).class_map)


def test_model_and_version_are_passed_on(tmp_path: Path, photo: Path) -> None:
    for version in ("1", "2"):
        write_tiny_model(tmp_path / "models" / "cat" / version / "model.onnx")
    with running_server(tmp_path / "models") as server:
        text = run(server.address, photo, "-o", tmp_path / "mask.png", "--model", "cat", "--version", "1")
    assert "cat (version 1)" in text


def test_names_with_markup_are_printed_as_they_are(tmp_path: Path, photo: Path) -> None:
    path = write_tiny_model(tmp_path / "m.onnx", class_names=("[red]a", "[/b]", "c"))
    with running_server(path) as server:
        text = run(server.address, photo, "-o", tmp_path / "mask.png")
    assert "[red]a" in text
    assert "[/b]" in text


def test_unknown_suffix_is_refused_before_anything_is_sent(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'\.jpg'; name a \.png or \.npy file"):
        run("127.0.0.1:1", photo, "-o", tmp_path / "mask.jpg")


def test_failed_request_leaves_no_file(tiny_model: Path, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.jpg"
    rubbish.write_bytes(b"rubbish")
    with running_server(tiny_model) as server, pytest.raises(RequestError):
        run(server.address, rubbish, "-o", tmp_path / "masks" / "mask.png")
    assert not (tmp_path / "masks").exists()


def test_an_image_that_is_a_link_to_itself_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    result = CliRunner().invoke(request, ["127.0.0.1:1", str(loop), "-o", str(tmp_path / "mask.png")])
    assert str(result.exception) == f"image {loop} cannot be read: Too many levels of symbolic links; check the path"


def test_the_mask_never_takes_the_place_of_the_image(photo: Path) -> None:
    before = photo.read_bytes()
    result = CliRunner().invoke(request, ["127.0.0.1:1", str(photo), "-o", str(photo)])
    assert isinstance(result.exception, UsageError)
    assert "would replace an input" in str(result.exception)
    assert photo.read_bytes() == before


def test_heatmaps_and_regions_stand_beside_the_mask_as_the_segment_command_writes_them(
    tiny_model: Path, photo: Path, tmp_path: Path
) -> None:
    asked = (
        "--heatmap",
        "GREEN",
        "--heatmap",
        "2",
        "--region-class",
        "red",
        "--threshold",
        "0.6",
        "--max-regions",
        "1",
    )
    with running_server(tiny_model) as server:
        text = run(server.address, photo, "-o", tmp_path / "served" / "photo.png", *asked)
    CliRunner().invoke(
        segment,
        [str(tiny_model), str(photo), str(tmp_path / "offline"), "--device", "cpu", *asked],
        standalone_mode=False,
    )
    names = sorted(path.name for path in (tmp_path / "served").iterdir())
    assert names == ["photo.heatmap-1-green.jpg", "photo.heatmap-2-blue.jpg", "photo.png", "photo.regions.json"]
    for name in names:
        assert (tmp_path / "served" / name).read_bytes() == (tmp_path / "offline" / name).read_bytes()
    regions = json.loads((tmp_path / "served" / "photo.regions.json").read_text())["regions"]
    assert [region["class"]["name"] for region in regions] == ["red"]
    assert regions[0]["score"] >= 0.6
    assert "region of" in text


def test_without_a_region_the_list_is_empty_and_said_to_be(tiny_model: Path, tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    cv2.imwrite(str(black), np.zeros((6, 8, 3), np.uint8))
    with running_server(tiny_model) as server:
        text = run(server.address, black, "-o", tmp_path / "mask.npy", "--regions")
    assert "no region reaches the threshold" in text
    assert json.loads((tmp_path / "mask.regions.json").read_text()) == {"height": 6, "width": 8, "regions": []}


def test_a_heatmap_never_takes_the_place_of_the_image(tiny_model: Path, photo: Path, tmp_path: Path) -> None:
    image = photo.rename(tmp_path / "mask.heatmap-0-red.jpg")
    before = image.read_bytes()
    with running_server(tiny_model) as server, pytest.raises(UsageError, match="would replace an input"):
        run(server.address, image, "-o", tmp_path / "mask.png", "--heatmap", "red")
    assert image.read_bytes() == before


def test_an_unknown_class_leaves_no_file(tiny_model: Path, photo: Path, tmp_path: Path) -> None:
    with running_server(tiny_model) as server, pytest.raises(RequestError, match=r"no class 'cat'"):
        run(server.address, photo, "-o", tmp_path / "masks" / "mask.png", "--heatmap", "cat")
    assert not (tmp_path / "masks").exists()


def test_confidence_and_overlay_stand_beside_the_mask(tiny_model: Path, photo: Path, tmp_path: Path) -> None:
    offline = fcnseg.load(tiny_model, "cpu").segment(photo, confidence=True)
    with running_server(tiny_model) as server:
        run(server.address, photo, "-o", tmp_path / "served" / "photo.png", "--confidence", "--overlay")
    CliRunner().invoke(
        segment,
        [str(tiny_model), str(photo), str(tmp_path / "offline"), "--device", "cpu", "--overlay"],
        standalone_mode=False,
    )
    names = sorted(path.name for path in (tmp_path / "served").iterdir())
    assert names == ["photo.confidence.png", "photo.overlay.jpg", "photo.png"]
    with Image.open(tmp_path / "served" / "photo.confidence.png") as confidence:
        assert confidence.mode == "L"
        np.testing.assert_array_equal(np.asarray(confidence), offline.confidence)
    for name in ("photo.overlay.jpg", "photo.png"):
        assert (tmp_path / "served" / name).read_bytes() == (tmp_path / "offline" / name).read_bytes()


def test_pixels_of_other_classes_get_one_id(tiny_model: Path, photo: Path, tmp_path: Path) -> None:
    ids = fcnseg.load(tiny_model, "cpu").segment(photo).class_map
    with running_server(tiny_model) as server:
        text = run(server.address, photo, "-o", tmp_path / "mask.npy", "--class", "BLUE", "--class", "0")
    np.testing.assert_array_equal(np.load(tmp_path / "mask.npy"), np.where(ids == 1, 255, ids))
    assert "other classes" in text
    assert f"{(ids == 1).mean():.1%}" in text
    assert "green" not in text


@pytest.mark.parametrize(
    ("option", "name"), [("--confidence", "mask.confidence.png"), ("--overlay", "mask.overlay.jpg")]
)
def test_nothing_takes_the_place_of_the_image(photo: Path, tmp_path: Path, option: str, name: str) -> None:
    image = photo.rename(tmp_path / name)
    with pytest.raises(UsageError, match="would replace an input"):
        run("127.0.0.1:1", image, "-o", tmp_path / "mask.png", option)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_request_is_sent_again_as_often_as_asked(photo: Path, tmp_path: Path, retries: int) -> None:
    attempts = 0

    def refuse(_: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        nonlocal attempts
        attempts += 1
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "1"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        raise AssertionError

    with server_that_answers(refuse) as address, pytest.raises(ServerUnavailableError):
        run(address, photo, "-o", tmp_path / "mask.png", "--retries", retries)
    assert attempts == 1 + retries


def test_a_server_that_is_not_there_is_told(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailableError, match="start one with 'fcnseg serve'"):
        run(f"127.0.0.1:{free_port()}", photo, "-o", tmp_path / "mask.png", "--retries", "0")


def test_help_has_one_example() -> None:
    assert CliRunner().invoke(request, ["--help"]).output.count("Example:") == 1

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import fcnseg
from fcnseg import masks, rle
from fcnseg.client import Client
from fcnseg.masks import Encoding
from tests.image_folders import noise
from tests.running_server import running_server
from tests.tiny_model import write_tiny_model


def paint_ids(ids: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Paint 2x2-pixel cells so that a tiny model of many classes answers with these ids."""
    big = ids.repeat(2, axis=0).repeat(2, axis=1)
    return np.stack([big % 256, big // 256, np.zeros_like(big)], axis=-1).astype(np.uint8)


def test_strongest_channel_is_answered(tiny_model: Path) -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    image[:, :4, 0] = image[:, 4:8, 1] = image[:, 8:, 2] = 200
    with running_server(tiny_model) as server, Client(server.address) as client:
        answer = client.segment(image)
    expected = np.array([[0] * 4 + [1] * 4 + [2] * 4] * 8, np.uint8)
    np.testing.assert_array_equal(answer.class_map, expected)
    assert [(c.id, c.name, c.pixels, c.fraction) for c in answer.classes] == [
        (0, "red", 32, 1 / 3),
        (1, "green", 32, 1 / 3),
        (2, "blue", 32, 1 / 3),
    ]
    assert (answer.model_name, answer.model_version) == ("tiny", "1")
    assert answer.label_map_hash == fcnseg.load(tiny_model, "cpu").info.label_map.hash


@pytest.mark.parametrize("class_count", [3, 70, 300])
def test_served_masks_equal_offline_masks_byte_for_byte(tmp_path: Path, class_count: int) -> None:
    path = write_tiny_model(tmp_path / "model.onnx", class_count=class_count)
    offline = fcnseg.load(path, "cpu", threads=1)

    @settings(max_examples=25)
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(Encoding))
    def check(height: int, width: int, seed: int, encoding: Encoding) -> None:
        image = noise(height, width, seed)
        segmentation = offline.segment(image)
        answer = client.segment(image, encoding=encoding)
        assert answer.encoding is encoding
        assert answer.class_map.dtype == segmentation.class_map.dtype
        np.testing.assert_array_equal(answer.class_map, segmentation.class_map)
        if encoding is Encoding.COCO_RLE:
            assert answer.runs == rle.encode(segmentation.class_map)
        else:
            assert answer.data == masks.encode(segmentation.class_map, encoding, offline.info.label_map)
        assert [(c.id, c.pixels) for c in answer.classes] == [(c.info.id, c.pixels) for c in segmentation.classes]

    with running_server(path) as server, Client(server.address) as client:
        check()


def test_ids_beyond_255_survive_in_every_encoding(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "many.onnx", class_count=300)
    ids = np.arange(300, dtype=np.uint16).reshape(15, 20)
    with running_server(path) as server, Client(server.address) as client:
        for encoding in Encoding:
            answer = client.segment(paint_ids(ids), encoding=encoding)
            assert answer.class_map.dtype == np.uint16
            np.testing.assert_array_equal(answer.class_map[::2, ::2], ids)
            assert {c.id: c.pixels for c in answer.classes} == dict.fromkeys(range(300), 4)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".webp"])
def test_encoded_and_raw_pixels_give_the_same_mask(tiny_model: Path, suffix: str) -> None:
    image = noise(33, 50)
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    encoded = cv2.imencode(suffix, image[:, :, ::-1], lossless)[1].tobytes()
    with running_server(tiny_model) as server, Client(server.address) as client:
        assert client.segment(encoded).data == client.segment(image).data


def test_exif_orientation_is_applied(tiny_model: Path) -> None:
    image = Image.fromarray(np.full((20, 30, 3), (255, 0, 0), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    with running_server(tiny_model) as server, Client(server.address) as client:
        assert client.segment(file.getvalue()).class_map.shape == (30, 20)


def test_image_larger_than_the_default_message_limit_passes(tiny_model: Path) -> None:
    image = noise(2050, 2100)  # 12.9 MB of RGB, 4.3 MB of ids
    offline = fcnseg.load(tiny_model, "cpu").segment(image)
    with running_server(tiny_model) as server, Client(server.address) as client:
        answer = client.segment(image, encoding=Encoding.RAW)
    np.testing.assert_array_equal(answer.class_map, offline.class_map)


def test_timings_say_where_the_time_went(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "slow.onnx", work_rounds=1000)
    with running_server(path) as server, Client(server.address) as client:
        timings = client.segment(noise(64, 64)).timings
    stages = (timings.decode_ms, timings.queue_ms, timings.infer_ms, timings.encode_ms)
    assert min(stages) > 0
    assert timings.infer_ms == max(stages)
    assert sum(stages) < timings.total_ms


def test_real_photograph_equals_offline(tiny_model: Path, shared_data: Path) -> None:
    photo = min((shared_data / "camvid" / "val").iterdir())
    offline = fcnseg.load(tiny_model, "cpu").segment(photo)
    with running_server(tiny_model) as server, Client(server.address) as client:
        answer = client.segment(photo)
    assert answer.data == masks.encode(offline.class_map, Encoding.PNG, offline.label_map)

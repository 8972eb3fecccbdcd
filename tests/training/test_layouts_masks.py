"""Masks drawn in colours, and the files that say which class has which colour."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fcnseg.errors import DatasetError
from fcnseg.types import LabelMap
from training.labels import Labels, find_labels, read_labelmap, read_labels
from training.mask_files import MaskFile

PALETTE = np.array([[128, 64, 128], [0, 0, 7], [255, 255, 254], [0, 0, 0]], np.uint8)


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Three classes and void, all with colours."""
    names = ["road", "thing", "sky", "void"]
    (tmp_path / "classes.json").write_text(json.dumps({"names": names, "palette_rgb": PALETTE.tolist(), "void": 3}))
    return read_labels(tmp_path / "classes.json")


def write_rgb(path: Path, rgb: np.ndarray) -> Path:
    Image.fromarray(rgb).save(path)
    return path


@given(ids=arrays(np.uint8, (5, 7), elements=st.integers(0, 3)), alpha=st.booleans(), order=st.permutations(range(4)))
def test_colours_are_read_as_the_ids_that_have_them(
    tmp_path_factory: pytest.TempPathFactory, ids: np.ndarray, *, alpha: bool, order: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn.png"
    colours = tuple((tuple(int(c) for c in PALETTE[order[i]]), i) for i in range(4))
    labels = Labels(LabelMap.from_names(["a", "b", "c"], ignore_id=3), colours, "classes.json")
    rgb = PALETTE[np.array(order)[ids]]
    write_rgb(path, np.concatenate([rgb, np.full((5, 7, 1), 9, np.uint8)], axis=2) if alpha else rgb)
    np.testing.assert_array_equal(MaskFile(path, labels).read(), ids)


def test_void_drawn_in_its_colour_is_the_ignore_id(tmp_path: Path, labels: Labels) -> None:
    path = write_rgb(tmp_path / "m.png", PALETTE[np.array([[3, 0]])])
    assert MaskFile(path, labels).read().tolist() == [[labels.label_map.ignore_id, 0]]


@pytest.mark.parametrize("colour", [(1, 2, 3), (128, 64, 129), (255, 255, 255), (0, 0, 1)])
def test_an_unknown_colour_is_named_with_the_file_the_pixel_and_how_often(
    tmp_path: Path, labels: Labels, colour: tuple[int, int, int]
) -> None:
    rgb = np.zeros((5, 7, 3), np.uint8)
    rgb[2, 4:6] = colour
    path = write_rgb(tmp_path / "m.png", rgb)
    with pytest.raises(DatasetError) as caught:
        MaskFile(path, labels).read()
    for words in (str(path), str(colour), "row 2, column 4", "classes.json (2 such pixels)"):
        assert words in str(caught.value)


def test_a_colour_of_two_ids_is_refused_where_masks_are_in_colours(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('{"names": ["a", "b"], "palette_rgb": [[1, 2, 3], [1, 2, 3]]}')
    labels = read_labels(tmp_path / "classes.json")
    path = write_rgb(tmp_path / "m.png", np.full((2, 2, 3), (1, 2, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"colour \(1, 2, 3\) to the ids 0 and 1"):
        MaskFile(path, labels).read()


def test_a_mask_in_colours_that_is_cut_short_is_named(tmp_path: Path, labels: Labels) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    path = write_rgb(tmp_path / "m.png", rgb)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DatasetError, match=r"m\.png is damaged or cut short"):
        MaskFile(path, labels).read()


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)], ids=["ids", "colours"])
def test_a_mask_larger_than_any_image_is_refused_by_its_header(
    tmp_path: Path, labels: Labels, shape: tuple[int, ...]
) -> None:
    path = write_rgb(tmp_path / "m.png", np.zeros(shape, np.uint8))
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 20000, 10000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"mask .*m\.png has 20000 x 10000 = 200000000 pixels, more than the limit"):
        MaskFile(path, labels).read()


def test_a_jpeg_is_no_mask(tmp_path: Path, labels: Labels) -> None:
    path = tmp_path / "m.jpg"
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(DatasetError, match=r"m\.jpg: the mask is not a PNG"):
        MaskFile(path, labels).read()


def test_labelmap_txt_gives_names_and_colours_in_its_order_and_classes_json_goes_before_it(tmp_path: Path) -> None:
    lines = "# comment\nbackground:0,0,0::\n\ntraffic light:250,170,30:a,b:c\n"
    (tmp_path / "labelmap.txt").write_text(lines, "utf-8-sig")
    labels = find_labels(tmp_path)
    assert labels is not None
    assert [info.name for info in labels.label_map.classes] == ["background", "traffic light"]
    assert labels.colours == (((0, 0, 0), 0), ((250, 170, 30), 1))
    assert labels.label_map.ignore_id == 255
    (tmp_path / "classes.json").write_text('{"names": ["x", "y"]}')
    labels = find_labels(tmp_path)
    assert labels is not None
    assert [info.name for info in labels.label_map.classes] == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:0,0,0::\nb:0,0::\n", "line 2: 'b:0,0::'"),
        ("a:0,0,0::\nb:0,0,256::\n", "line 2"),
        ("a:0,0,0::\nb\n", "line 2: 'b'"),
        ("a:0,0,0::\na:1,1,1::\n", "two classes"),
        ("a:0,0,0::\n", "names 1 classes"),
    ],
)
def test_a_wrong_labelmap_txt_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_labelmap(tmp_path / "labelmap.txt")

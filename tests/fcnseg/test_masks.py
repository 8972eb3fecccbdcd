import io
import struct
from pathlib import Path

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcnseg import masks
from fcnseg.errors import MaskError
from fcnseg.masks import Encoding
from fcnseg.types import ClassMap, LabelMap
from tests.fcnseg.test_image_kinds import png

LABELS = LabelMap.from_names(["background", "cat"], [(1, 2, 3), (250, 100, 0)])
PNG, RAW, ZSTD = Encoding.PNG, Encoding.RAW, Encoding.ZSTD
BYTE_ENCODINGS = [encoding for encoding in Encoding if encoding is not Encoding.COCO_RLE]
class_maps = npst.arrays(
    st.sampled_from([np.dtype(np.uint8), np.dtype(np.uint16)]),
    npst.array_shapes(min_dims=2, max_dims=2, max_side=40),
)


@given(class_maps, st.sampled_from(BYTE_ENCODINGS))
def test_a_class_map_survives_every_encoding(class_map: ClassMap, encoding: Encoding) -> None:
    data = masks.encode(class_map, encoding, LABELS)
    assert data == masks.encode(np.asfortranarray(class_map), encoding, LABELS)
    decoded = masks.decode(data, encoding, shape=class_map.shape, dtype=class_map.dtype)
    assert decoded.dtype == class_map.dtype
    assert decoded.flags.writeable
    assert np.array_equal(decoded, class_map)


@given(class_maps)
def test_pillow_and_read_ids_see_the_ids_of_a_png(class_map: ClassMap) -> None:
    data = masks.encode(class_map, PNG, LABELS)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == ("P" if class_map.dtype == np.uint8 else "I;16")
        assert np.array_equal(np.asarray(image), class_map)
    assert np.array_equal(masks.read_ids(data), class_map)


def test_an_indexed_png_is_8_bits_deep_with_a_full_palette_however_few_the_classes() -> None:
    data = masks.encode(np.array([[0, 1]], np.uint8), PNG, LABELS)
    assert data[24:26] == bytes([8, 3])  # bit depth, colour type
    assert data[37:41] == b"PLTE"
    assert struct.unpack(">I", data[33:37]) == (768,)
    with Image.open(io.BytesIO(data)) as image:
        assert np.asarray(image.convert("RGB")).tolist() == [[[1, 2, 3], [250, 100, 0]]]


def test_raw_ids_are_little_endian() -> None:
    assert masks.encode(np.array([[0x0102]], np.uint16), RAW, LABELS) == b"\x02\x01"


@pytest.mark.parametrize("encoding", BYTE_ENCODINGS)
@pytest.mark.parametrize(("shape", "dtype"), [((3, 5), np.uint8), ((4, 4), np.uint8), ((3, 4), np.uint16)])
def test_a_class_map_of_another_shape_or_dtype_is_refused(
    encoding: Encoding, shape: tuple[int, int], dtype: type[np.generic]
) -> None:
    data = masks.encode(np.ones((3, 4), np.uint8), encoding, LABELS)
    with pytest.raises(MaskError):
        masks.decode(data, encoding, shape=shape, dtype=dtype)


def test_a_zstd_frame_that_claims_or_holds_more_than_fits_is_refused() -> None:
    bomb = bytes(2**24)
    claiming = zstandard.ZstdCompressor().compress(bomb)
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bomb)
    for data in (claiming, silent):
        with pytest.raises(MaskError):
            masks.decode(data, ZSTD, shape=(3, 4), dtype=np.uint8)


def test_a_zstd_frame_without_its_size_is_read() -> None:
    data = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(range(12)))
    assert masks.decode(data, ZSTD, shape=(3, 4), dtype=np.uint8).ravel().tolist() == list(range(12))


@given(st.binary(max_size=100), st.sampled_from(BYTE_ENCODINGS))
def test_any_bytes_give_a_class_map_or_a_mask_error(data: bytes, encoding: Encoding) -> None:
    try:
        assert masks.decode(data, encoding, shape=(3, 4), dtype=np.uint8).shape == (3, 4)
    except MaskError:
        return


@given(st.integers(0, 2**31), st.integers(0, 7))
def test_a_damaged_png_gives_a_class_map_or_a_mask_error(position: int, bit: int) -> None:
    data = bytearray(masks.encode(np.arange(12, dtype=np.uint8).reshape(3, 4), PNG, LABELS))
    data[position % len(data)] ^= 1 << bit
    try:
        assert masks.decode(bytes(data), PNG, shape=(3, 4), dtype=np.uint8).shape == (3, 4)
    except MaskError:
        return


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_mask_of_another_program_may_have_a_short_palette(tmp_path: Path, bits: int) -> None:
    ids = np.array([[0, 1, 1], [1, 0, 1]], np.uint8)
    image = Image.fromarray(ids)
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "mask.png", bits=bits)
    assert np.array_equal(masks.read_ids(tmp_path / "mask.png"), ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_values_of_any_depth_are_ids(bits: int) -> None:
    ids = np.arange(2**bits).reshape(2, -1) if bits < 16 else np.array([[0, 1, 256, 65535]])
    found = masks.read_ids(png(ids[..., None], bits, colour=0))
    assert found.dtype == (np.uint16 if bits == 16 else np.uint8)
    assert np.array_equal(found, ids)


def test_a_colour_picture_is_no_mask(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    with pytest.raises(MaskError, match=r"picture\.png: the mask is a PNG of mode RGB"):
        masks.read_ids(tmp_path / "picture.png")
    with pytest.raises(MaskError, match="cannot be read"):
        masks.read_ids(tmp_path / "missing.png")
    with pytest.raises(MaskError, match="not a PNG file"):
        masks.read_ids(b"P5 1 1 255 x")


def test_run_lengths_are_no_bytes() -> None:
    ids = np.zeros((1, 1), np.uint8)
    with pytest.raises(ValueError, match=r"use fcnseg\.rle"):
        masks.encode(ids, Encoding.COCO_RLE, None)
    with pytest.raises(ValueError, match=r"use fcnseg\.rle"):
        masks.decode(b"", Encoding.COCO_RLE, shape=(1, 1), dtype=np.uint8)

"""AVIF files whose AV1 data are not what the file declares, and the many ways to store what they are."""

import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from fcnseg import images
from fcnseg.av1_size import frame_sizes
from fcnseg.avif import coded_size
from fcnseg.errors import ImageError, ImageTooLargeError
from fcnseg.images import EncodedImage, ImageLimits
from tests.fcnseg.test_av1_size import SCALED

SQUARE = Image.effect_noise((64, 64), 60).convert("RGB")


def encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "avif", **options)
    return file.getvalue()


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + kind + body


def body_of(data: bytes, kind: bytes) -> bytes:
    """The body of the first box of a kind."""
    at = data.index(kind)
    return data[at + 4 : at - 4 + int.from_bytes(data[at - 4 : at], "big")]


SOUND = encoded(SQUARE)
PAYLOAD = body_of(SOUND, b"mdat")
PROPERTIES = box(b"iprp", body_of(SOUND, b"iprp"))
FILE_TYPE = box(b"ftyp", b"avif\0\0\0\0avifmif1miaf")
HANDLER = box(b"hdlr", bytes(8), b"pict", bytes(13))


SEQUENCE_HEADER = re.compile(rb"(?<=\x12\0)\n[\x05-\x0c].{5,12}?(?=2)", re.DOTALL)


def container(
    locations: bytes, *, idat: bytes = b"", media: bytes = b"", version: int = 2, properties: bytes = PROPERTIES
) -> bytes:
    """A file of one item, number 1, whose `iloc` is given."""
    number = struct.pack(">H" if version == 2 else ">I", 1)
    entry = box(b"infe", bytes([version, 0, 0, 0]), number, bytes(2), b"av01", b"\0")
    meta = box(
        b"meta",
        bytes(4),
        HANDLER,
        box(b"pitm", bytes(4), b"\0\1"),
        box(b"iloc", locations),
        box(b"iinf", bytes(4), b"\0\1", entry),
        properties,
        box(b"idat", idat) if idat else b"",
    )
    return FILE_TYPE + meta + box(b"mdat", media)


def stored(kind: str) -> bytes:
    """One image, stored in one of the ways that `iloc` has."""
    half = len(PAYLOAD) // 2
    if kind == "idat":
        return container(struct.pack(">I2BHHHHHII", 1 << 24, 0x44, 0, 1, 1, 1, 0, 1, 0, len(PAYLOAD)), idat=PAYLOAD)
    if kind == "item numbers of 32 bits":
        return container(
            struct.pack(">I2BIIHHHII", 2 << 24, 0x44, 0, 1, 1, 1, 0, 1, 0, len(PAYLOAD)), idat=PAYLOAD, version=3
        )
    if kind == "two extents":
        swapped = PAYLOAD[half:], PAYLOAD[:half]
        head = struct.pack(">I2BHHHHH", 1 << 24, 0x44, 0, 1, 1, 1, 0, 2)
        extents = struct.pack(">IIII", len(swapped[0]), half, 0, len(swapped[0]))
        return container(head + extents, idat=b"".join(swapped))

    form = struct.Struct(">I2BHHHQHII")
    start = len(container(bytes(form.size)))
    locations = form.pack(0, 0x44, 0x80, 1, 1, 0, start - 7, 1, 7, len(PAYLOAD))
    return container(locations, media=PAYLOAD)


@pytest.mark.parametrize("kind", ["base offset of 64 bits", "idat", "item numbers of 32 bits", "two extents"])
def test_items_are_found_however_they_are_stored(kind: str) -> None:
    data = stored(kind)
    assert coded_size(data) == (64, 64)
    assert np.array_equal(images.decode(data), images.decode(SOUND))
    with pytest.raises(ImageError, match=r"declares 16 x 16 pixels, and its AV1 data code 64 x 64"):
        EncodedImage(data.replace(struct.pack(">II", 64, 64), struct.pack(">II", 16, 16)))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 400), (640, 33)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("quality", [10, 100])
def test_sound_files_code_the_size_that_they_declare(size: tuple[int, int], mode: str, quality: int) -> None:
    image = Image.effect_noise(size, 60).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.effect_noise(size, 60))
    data = encoded(image, quality=quality, speed=10)
    assert coded_size(data) == size[::-1]
    assert images.decode(data).shape == (*size[::-1], 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_sequences_code_the_size_that_they_declare(mode: str) -> None:
    image = SQUARE.copy()
    if mode == "RGBA":
        image.putalpha(SQUARE.getchannel("G"))
    data = encoded(image, save_all=True, append_images=[image.rotate(90)], speed=10)
    assert data[8:12] == b"avis"
    assert coded_size(data) == (64, 64)
    assert images.decode(data).shape == (64, 64, 3)


def test_a_grid_is_larger_than_its_tiles() -> None:
    grid = struct.pack(">4B2H", 0, 0, 0, 1, 128, 64)  # one row of two columns
    tile = struct.pack(">II", len(grid), len(PAYLOAD))
    locations = struct.pack(">I2BH", 1 << 24, 0x44, 0, 3) + b"".join(
        struct.pack(">HHHH", number, 1, 0, 1) + place
        for number, place in ((1, struct.pack(">II", 0, len(grid))), (2, tile), (3, tile))
    )
    entries = [
        box(b"infe", b"\2\0\0\0", struct.pack(">HH", number, 0), kind, b"\0")
        for number, kind in ((1, b"grid"), (2, b"av01"), (3, b"av01"))
    ]
    size = box(b"ispe", bytes(4), struct.pack(">II", 128, 64))
    properties = body_of(SOUND, b"ipco")
    kinds = list_boxes(properties)
    tiles = bytes([len(kinds), *range(1, len(kinds) + 1)])
    whole = [index + 1 for index, kind in enumerate(kinds) if kind in {b"pixi", b"colr"}] + [len(kinds) + 1]
    links = struct.pack(">I", 3) + b"\0\1" + bytes([len(whole), *whole]) + b"\0\2" + tiles + b"\0\3" + tiles
    meta = box(
        b"meta",
        bytes(4),
        HANDLER,
        box(b"pitm", bytes(4), b"\0\1"),
        box(b"iloc", locations),
        box(b"iinf", bytes(4), b"\0\3", *entries),
        box(b"iref", bytes(4), box(b"dimg", struct.pack(">4H", 1, 2, 2, 3))),
        box(b"iprp", box(b"ipco", properties, size), box(b"ipma", bytes(4), links)),
        box(b"idat", grid, PAYLOAD),
    )
    data = FILE_TYPE + meta
    assert coded_size(data) == (64, 64)
    one = images.decode(SOUND)
    assert np.array_equal(images.decode(data), np.concatenate([one, one], axis=1))


def list_boxes(data: bytes) -> list[bytes]:
    """The kinds of boxes that follow each other."""
    kinds = []
    while data:
        kinds.append(data[4:8])
        data = data[int.from_bytes(data[:4], "big") :]
    return kinds


def declared(data: bytes, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    """Another size in every place where a file declares one."""
    for form in (">II", ">HH"):  # `ispe` and a track's samples
        data = data.replace(struct.pack(form, *old), struct.pack(form, *new))
    return data.replace(struct.pack(">II", old[0] << 16, old[1] << 16), struct.pack(">II", new[0] << 16, new[1] << 16))


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_file_that_codes_more_than_it_declares_is_refused_by_its_headers(frames: int, mode: str) -> None:
    image = Image.new(mode, (1500, 1500))
    more = {"save_all": True, "append_images": [image.rotate(90)] * (frames - 1)} if frames > 1 else {}
    data = declared(encoded(image, speed=10, **more), (1500, 1500), (16, 16))
    with pytest.raises(ImageError, match="declares 16 x 16 pixels, and its AV1 data code 1500 x 1500; store"):
        EncodedImage(data)
    with pytest.raises(ImageTooLargeError, match=r"AV1 data .* 1500 x 1500 = 2250000 pixels.*limit of 1000"):
        EncodedImage(data, ImageLimits(max_pixels=1000))


def test_alpha_that_is_larger_than_the_colours_is_refused() -> None:
    clear = SQUARE.copy()
    clear.putalpha(SQUARE.getchannel("G"))
    small, large = (encoded(clear.resize((side, side))) for side in (40, 64))
    found = [list(SEQUENCE_HEADER.finditer(data)) for data in (small, large)]
    assert [len(headers) for headers in found] == [2, 2]
    for old, new in zip(*found, strict=True):
        assert len(old[0]) == len(new[0])
        with pytest.raises(ImageError, match="declares 40 x 40 pixels, and its AV1 data code 64 x 64"):
            EncodedImage(small[: old.start()] + new[0] + small[old.end() :])


def test_a_frame_that_is_larger_than_its_sequence_is_refused() -> None:
    """Pillow alone decodes it, and scales it down."""
    sequence = int.from_bytes(SCALED[4:14], "big")
    shift = 80 - 37 - 7 - 6  # behind what else the header has: max_frame_width_minus_1 and max_frame_height_minus_1
    assert sequence >> shift & 0x1FFF == 95 << 6 | 63
    sequence += ((15 << 6 | 15) - (95 << 6 | 63)) << shift
    payload = SCALED[:4] + sequence.to_bytes(10, "big") + SCALED[14:33]
    assert list(frame_sizes(memoryview(payload))) == [(0, 0), (16, 16), (43, 64)]
    properties = box(b"iprp", body_of(encoded(SQUARE.resize((16, 16))), b"iprp"))
    locations = struct.pack(">I2BHHHHHII", 1 << 24, 0x44, 0, 1, 1, 1, 0, 1, 0, len(payload))
    data = container(locations, idat=payload, properties=properties)
    with Image.open(io.BytesIO(data)) as image:
        assert np.asarray(image).shape == (16, 16, 3)
    with pytest.raises(ImageError, match="declares 16 x 16 pixels, and its AV1 data code 64 x 43"):
        EncodedImage(data)


DAMAGED = {
    "no AV1 data": (SOUND.replace(b"av01", b"av02"), "there are no AV1 data"),
    "data beyond the end": (container(struct.pack(">I2BHHHHHII", 1 << 24, 0x44, 0, 1, 1, 1, 0, 1, 9, 9)), "beyond its"),
    "another method": (container(struct.pack(">I2BHHHHHII", 1 << 24, 0x44, 0, 1, 1, 2, 0, 1, 0, 9)), "by method 2"),
    "a box that is longer than its parent": (
        FILE_TYPE + box(b"meta", bytes(4), struct.pack(">I", 99), b"iinf"),
        "a box has 99 bytes of 8",
    ),
    "a table that ends too early": (container(struct.pack(">I2BH", 1 << 24, 0x44, 0, 9)), "a box ends too early"),
    "extents without numbers": (
        container(struct.pack(">I2BH", 1 << 24, 0, 0, 3) + struct.pack(">HHHH", 1, 0, 0, 0xFFFF) * 3),
        "more than 65536 parts",
    ),
    "extents that overlap": (
        container(
            struct.pack(">I2BHHHHH", 1 << 24, 0x44, 0, 1, 1, 1, 0, 99) + struct.pack(">II", 0, 0) * 99, idat=PAYLOAD
        ),
        "pieces of its items overlap",
    ),
    "boxes without end": (FILE_TYPE + box(b"free") * 70_000, "more than 65536 parts"),
    "units without end": (
        container(struct.pack(">I2BHHHHHII", 1 << 24, 0x44, 0, 1, 1, 1, 0, 1, 0, 0), idat=b"\x12\0" * 70_000),
        "more than 65536 parts",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_refused_in_one_line(name: str) -> None:
    data, words = DAMAGED[name]
    with pytest.raises(ImageError, match=words) as raised:
        coded_size(data)
    assert str(raised.value).isprintable()
    with pytest.raises(ImageError):
        images.decode(data)


@pytest.mark.parametrize("length", range(0, len(SOUND), 7))
def test_a_file_cut_anywhere_has_its_size_or_is_refused(length: int) -> None:
    try:
        assert coded_size(SOUND[:length]) == (64, 64)
    except ImageError as error:
        assert "damaged or cut short" in str(error)  # noqa: PT017  # the error is only one of two good ends


def test_what_follows_the_image_is_left_alone() -> None:
    assert coded_size(SOUND + b"\0\0\0\x02junk") == (64, 64)
    assert coded_size(SOUND + b"\xff\xff\xff\xffjunk" * 3) == (64, 64)


def test_bytes_that_many_items_share_are_read_a_few_times_alone() -> None:
    """A small file would take seconds otherwise."""
    place = struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(PAYLOAD))

    def shared(items: int) -> bytes:
        return container(struct.pack(">I2BH", 1 << 24, 0x44, 0, items) + place * items, idat=PAYLOAD)

    assert coded_size(shared(2)) == (64, 64)
    with pytest.raises(ImageError, match="too many of its items lie in the same place"):
        coded_size(shared(100))

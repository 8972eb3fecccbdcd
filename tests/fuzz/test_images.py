"""Image files of strangers: pixels within the limits, or an ImageError; never more memory than the limits are worth."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcnseg.errors import ImageError
from fcnseg.images import EncodedImage, ImageLimits, decode
from tests.fuzz.law import require_line
from tests.fuzz.memory import MIB, at_most, require_peaks
from tests.fuzz.mutations import examples, mutated

LIMITS = ImageLimits(max_bytes=1 << 20, max_pixels=1 << 20, max_side=1 << 12)
# A decoder's own tables, and for each pixel what the widest format takes in steps between.
TABLES, BYTES_PER_PIXEL = 32 * MIB, 20
MOST_BYTES = TABLES + BYTES_PER_PIXEL * LIMITS.max_pixels
BOMB = zlib.compress(bytes(8 << 20), 9)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def seeds() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = image.convert("RGBA")
    clear = rgba.copy()
    clear.putalpha(image.getchannel("G"))
    frames = {"save_all": True, "append_images": [rgba]}
    return [
        *(write(image, "jpeg", exif=exif, **options) for options in ({}, {"progressive": True}, {"quality": 10})),
        *(write(image.convert(mode), "jpeg") for mode in ("L", "CMYK")),
        *(write(image.convert(mode), "png") for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
        write(image, "png", exif=exif, dpi=(72, 72)),
        *(write(rgba, "webp", **options) for options in ({}, {"lossless": True}, {"exif": exif}, frames)),
        *(write(image.convert(mode), "tiff") for mode in ("RGB", "CMYK", "L", "P", "1", "I;16", "I", "F", "LAB")),
        *(write(image, "tiff", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        write(image, "tiff", tiffinfo=exif, **frames),
        *(write(image.convert(mode), "bmp") for mode in ("RGB", "P", "1", "L")),
        write(rgba, "bmp"),
        *(write(image, "avif", **options) for options in ({}, {"exif": exif}, {"quality": 100}, frames)),
        write(clear, "avif"),
    ]


SEEDS = seeds()
AVIF_SEEDS = [data for data in SEEDS if data[4:8] == b"ftyp"]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@st.composite
def png_files(draw: st.DrawFn) -> bytes:
    """PNG files whose checksums hold, with any header and chunks: what random bytes never come to."""
    side = st.sampled_from([0, 1, 7, 8, 1024, 4096, 4097, 65_535, 2**31 - 1, 2**31, 2**32 - 1])
    header = struct.pack(
        ">IIBBBBB",
        draw(side),
        draw(side),
        draw(st.sampled_from([1, 2, 4, 8, 16, 3])),
        draw(st.sampled_from([0, 2, 3, 4, 6, 1])),
        draw(st.sampled_from([0, 0, 0, 1])),
        draw(st.sampled_from([0, 0, 0, 1])),
        draw(st.sampled_from([0, 0, 1, 2])),
    )
    kinds = [b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"pHYs"]
    contents = st.binary(max_size=60) | st.just(b"name\0\0" + BOMB) | st.just(b"name\0\1\0\0\0" + BOMB)
    chunks = [chunk(*draw(st.tuples(st.sampled_from(kinds), contents))) for _ in range(draw(st.integers(0, 4)))]
    pixels = draw(st.binary(max_size=100).map(zlib.compress) | st.just(BOMB) | st.binary(max_size=50))
    ends = draw(st.sampled_from([chunk(b"IEND", b""), b"", chunk(b"tEXt", b"a\0b")]))
    return b"".join([PNG_SIGNATURE, chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), ends])


@st.composite
def tiff_files(draw: st.DrawFn) -> bytes:
    """TIFF files with any values in the tags that say how large and how laid out the pixels are."""
    order = draw(st.sampled_from("<>"))
    numbers = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 1024, 4096, 65_535, 2**31 - 1, 2**32 - 1])
    compressions = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34712, 50000, 50001])
    tags: dict[int, int] = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
    for tag in draw(
        st.lists(st.sampled_from([*tags, 266, 274, 284, 317, 320, 322, 323, 324, 325, 338, 339]), max_size=4)
    ):
        tags[tag] = draw(compressions if tag == 259 else numbers)
    for tag in draw(st.lists(st.sampled_from(sorted(tags)), max_size=1)):
        del tags[tag]
    odd = draw(st.sets(st.sampled_from(sorted(tags)), max_size=2))  # of more, hardly a file would pass its header
    kinds, counts = st.sampled_from([4, 3, 1, 12]), st.sampled_from([1, 0, 3, 2**20, 2**32 - 1])
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, *((draw(kinds), draw(counts)) if tag in odd else (4, 1)), value)
        for tag, value in sorted(tags.items())
    )
    data = draw(st.sampled_from([bytes(64), BOMB, bytes(range(64))]))
    offset = 8 + len(data)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return magic + struct.pack(f"{order}I", offset) + data + directory


def require_law(data: bytes) -> None:
    with at_most(MOST_BYTES):
        try:
            image = decode(data, LIMITS)
        except ImageError as error:
            require_line(error)
            return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 0 < image.shape[0] * image.shape[1] <= LIMITS.max_pixels
    # Upright: an orientation may have swapped what the header says.
    assert sorted(image.shape[:2]) == sorted(EncodedImage(data, LIMITS).size)


@examples(60)
@given(mutated(SEEDS))
def test_changed_files_are_images_or_an_image_error(data: bytes) -> None:
    require_peaks()
    require_law(data)


@examples(60)
@given(mutated(AVIF_SEEDS))
def test_changed_avif_files_are_images_or_an_image_error(data: bytes) -> None:
    require_peaks()
    require_law(data)


@examples(25)
@given(png_files())
def test_pngs_with_any_header_and_chunks_are_images_or_an_image_error(data: bytes) -> None:
    require_peaks()
    require_law(data)


@examples(30)
@given(tiff_files())
def test_tiffs_with_any_tags_are_images_or_an_image_error(data: bytes) -> None:
    require_peaks()
    require_law(data)


def test_the_seeds_are_sound() -> None:
    for data in SEEDS:
        assert decode(data).shape[2] == 3


SIDE = 2048


def blank_tiff(mode: str) -> bytes:
    return write(Image.new(mode, (SIDE, SIDE)), "tiff", compression="tiff_adobe_deflate")


def blank_webp() -> bytes:
    return write(Image.new("RGB", (SIDE, SIDE)), "webp", lossless=True)


def blank_png() -> bytes:
    return write(Image.new("RGBA", (SIDE, SIDE)), "png")


@pytest.mark.parametrize(
    "make",
    [lambda: blank_tiff("F"), lambda: blank_tiff("I"), lambda: blank_tiff("I;16"), blank_webp, blank_png],
    ids=["float", "32 bits", "16 bits", "webp", "png"],
)
def test_small_files_of_many_pixels_take_no_more_than_their_pixels_are_worth(make: Callable[[], bytes]) -> None:
    require_peaks()
    data = make()
    assert len(data) < 50_000
    with at_most(TABLES // 2 + BYTES_PER_PIXEL * SIDE**2):
        assert decode(data).shape == (SIDE, SIDE, 3)

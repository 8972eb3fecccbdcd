import io
import json
import os
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fcnseg import images, jpeg_scans, png_chunks
from fcnseg.allocator import release_freed_memory
from fcnseg.errors import ImageError, ImageTooLargeError
from fcnseg.images import ImageLimits
from tests.image_folders import encoded
from tests.process_memory import forget_peak, peak, resident

HARD_IMAGES = Path(__file__).parents[3] / "shared" / "data" / "hard_images"
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
ACCEPTED = {*FORMATS, "GIF"}
# Two builds of one decoder may differ by rounding; JPEG and WebP in particular. Lossless formats agree exactly.
LOSSY_TOLERANCE = 4


def picture(height: int = 24, width: int = 40, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth picture without any symmetry."""
    y, x = np.mgrid[:height, :width]
    channels = [(x * 5 + y * 2 + seed) % 256, 255 - x * 3, y * 7 % 256]
    return np.stack(channels, axis=-1).astype(np.uint8)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PNG_OF_8X8 = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", bytes((0, 0, 0, 8, 0, 0, 0, 8, 8, 2, 0, 0, 0)))
"""As far as its header."""


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    """What Pillow alone makes of an image; samples of 16 bits keep their high byte instead of being clipped."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        bits = image.tag_v2.get(258, (16,))[0] if image.format == "TIFF" else 16  # type: ignore[attr-defined]
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            return np.stack([np.asarray(upright) >> (bits - 8)] * 3, axis=-1).astype(np.uint8)
        upright.info.pop("transparency", None)
        return np.asarray(upright.convert("RGB"))


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("kind", FORMATS)
def test_every_accepted_format_decodes_to_rgb(kind: str) -> None:
    options = {"quality": 95} if kind in {"WEBP", "AVIF"} else {}
    image = images.decode(encoded(Image.fromarray(picture()), kind, **options))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    lossy = kind in {"JPEG", "WEBP", "AVIF"}
    assert image.shape == picture().shape
    assert np.abs(image.astype(int) - picture()).mean() <= (12 if lossy else 0)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_grey_image_has_three_equal_channels(kind: str) -> None:
    grey = picture()[:, :, 0]
    image = images.decode(encoded(Image.fromarray(grey), kind))
    assert image.shape == (*grey.shape, 3)
    assert np.ptp(image.astype(int), axis=2).max() <= LOSSY_TOLERANCE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(picture()), kind, exif=exif, **options)
    turns = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90,
    }
    expected = turns.get(orientation, lambda a: a)(picture())
    image = images.decode(data)
    assert image.shape == expected.shape
    tolerance = 12 if kind in {"JPEG", "AVIF"} else 0
    assert np.abs(image.astype(int) - expected).mean() <= tolerance
    stored = images.decode(data, upright=False)
    assert stored.shape == picture().shape
    assert np.abs(stored.astype(int) - picture()).mean() <= tolerance


def test_exif_behind_the_pixels_of_a_png_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    data = encoded(Image.fromarray(picture()), "PNG")
    assert np.array_equal(images.decode(data[:-12] + chunk + data[-12:]), np.rot90(picture(), -1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_dropped_and_the_stored_colours_stay(kind: str) -> None:
    alpha = np.full((*picture().shape[:2], 1), 0, np.uint8)
    alpha[:, 20:] = 128
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(np.concatenate([picture(), alpha], axis=2)), kind, **options)
    assert np.array_equal(images.decode(data), picture())


def test_transparency_of_a_palette_is_dropped_without_a_warning() -> None:
    palette = Image.fromarray(picture()).quantize(16)
    data = encoded(palette, "PNG", transparency=bytes(range(0, 160, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = images.decode(data)
    assert np.array_equal(image, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(kind: str) -> None:
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = images.decode(encoded(Image.fromarray(samples), kind))
    assert np.array_equal(image[:, :, 1], samples >> 8)


@pytest.mark.parametrize(("largest", "white"), [(1.0, 1.0), (200.0, 255.0), (4000.0, 65535.0)])
def test_float_samples_are_scaled_by_the_first_white_that_none_exceeds(largest: float, white: float) -> None:
    samples = np.linspace(-0.5, largest, 30, dtype=np.float32).reshape(5, 6)
    image = images.decode(encoded(Image.fromarray(samples), "TIFF"))
    assert np.array_equal(image[:, :, 0], np.clip(samples.astype(float) * 255 / white, 0, 255).astype(np.uint8))


def test_float_samples_that_are_not_finite_are_black() -> None:
    samples = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    assert images.decode(encoded(Image.fromarray(samples), "TIFF"))[0, :, 0].tolist() == [0, 0, 0, 255]


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "PNG"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    first, second = Image.fromarray(picture()), Image.fromarray(255 - picture())
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert np.array_equal(images.decode(data), picture())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.6, 0.97])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    rng = np.random.default_rng(3)
    data = encoded(Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)), kind)
    with pytest.raises(ImageError, match=r"damaged or cut short|cannot"):
        images.decode(data[: int(len(data) * share)])


def test_a_jpeg_cut_behind_a_complete_thumbnail_is_refused() -> None:
    thumbnail = encoded(Image.fromarray(picture(8, 8)), "JPEG")
    data = encoded(Image.fromarray(picture(200, 200)), "JPEG", exif=b"Exif\0\0" + thumbnail)
    assert b"\xff\xd9" in data[: len(data) // 2]
    assert images.decode(data).shape == (200, 200, 3)
    with pytest.raises(ImageError):
        images.decode(data[: len(data) - 300])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"hello, world", "not an image that can be recognised"),
        (b"\xff\xd8\xff", "JPEG image is damaged"),
        (b"\x89PNG\r\n\x1a\n", "PNG image is damaged"),
        (b"BM", "BMP image is damaged"),
        (b"II*\0", "TIFF image is damaged"),
        (b"RIFF\x04\0\0\0WEBP", "WEBP image is damaged"),
        (b"GIF89a", "GIF image is damaged"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "AVIF image is damaged"),
        (
            encoded(Image.fromarray(picture()), "PPM"),
            "PPM images are not accepted.*use JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC images are not accepted"),
        (b"%PDF-1.7", "PDF images are not accepted"),
    ],
)
def test_what_is_not_an_accepted_image_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as raised:
        images.decode(data)
    assert "\n" not in str(raised.value)


def test_the_limit_on_bytes_is_named() -> None:
    with pytest.raises(ImageTooLargeError, match=r"101 bytes.*limit of 100;"):
        images.decode(b"x" * 101, ImageLimits(max_bytes=100))


def test_the_limit_on_pixels_holds_before_pixels_are_decoded() -> None:
    """The header claims 60000 x 60000 pixels and no pixel follows: only the limit can be what refuses it."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(ImageTooLargeError, match=r"60000 x 60000 = 3600000000 pixels.*limit of 134217728"):
        images.decode(data)


def test_a_webp_canvas_beyond_pillows_own_limit_is_too_large() -> None:
    """A solid lossless WebP of 16383 x 16383 pixels: 34 bytes."""
    bits = (16382 | 16382 << 14).to_bytes(4, "little")
    data = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0/" + bits + bytes(9)
    with pytest.raises(ImageTooLargeError, match="limit of 134217728"):
        images.decode(data)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("JPEG", b"\xff\xd8\xff" + bytes(1 << 20)),
        ("JPEG", b"\xff\xd8" + b"\xff\xfe\0\2" * (1 << 18)),
        ("PNG", PNG_OF_8X8 + png_chunk(b"tEXt", b"a\0b") * 30_000),
        ("GIF", b"GIF89a" + bytes((8, 0, 8, 0, 0, 0, 0)) + b"\x21\xfe" + b"\1a" * (1 << 18)),
    ],
    ids=["nothing between marks", "empty segments", "short texts", "short blocks"],
)
def test_a_header_of_endless_parts_is_not_read_to_its_end(kind: str, data: bytes) -> None:
    with pytest.raises(ImageError, match=f"the {kind} image is damaged or cut short .*its header takes more than"):
        images.decode(data)


def progressive(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.fromarray(picture()), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * (scans - data.count(b"\xff\xda")) + data[end:]


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    assert images.decode(progressive(100)).shape == picture().shape
    with pytest.raises(ImageError, match="the JPEG image has more than 100 scans; store it again"):
        images.decode(progressive(101))


def test_an_end_of_image_within_a_comment_hides_no_scans() -> None:
    data = progressive(101)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    with pytest.raises(ImageError, match="more than 100 scans"):
        images.decode(data[:second] + b"\xff\xfe\0\4\xff\xd9" + data[second:])


def test_what_follows_a_jpeg_is_none_of_its_scans() -> None:
    data = encoded(Image.fromarray(picture()), "JPEG", progressive=True)
    film = b"\xff\xda" * 1000
    assert np.array_equal(images.decode(data + film), images.decode(data))


@settings(max_examples=200)
@given(st.lists(st.sampled_from([b"\xff\xda", b"\xff\xd9", b"\xff\x00", b"\xff\xd0", b"\xff\xff", b"a", b"\0\2"])))
def test_scans_are_counted_as_a_walk_over_the_bytes_counts_them(parts: list[bytes]) -> None:
    data = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg_scans, "MOST_SCANS", 3)
        patch.setattr(jpeg_scans, "_AT_ONCE", 5)
        assert jpeg_scans.has_too_many_scans(data, 0) == (plain_scans(data) > 3)


def plain_scans(data: bytes) -> int:
    scans, at = 1, 0
    while at + 1 < len(data):
        if data[at] != 0xFF or data[at + 1] in {0, 0xFF, *range(0xD0, 0xD8)}:
            at += 1
            continue
        if data[at + 1] == 0xD9:
            break
        scans += data[at + 1] == 0xDA
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return scans


def test_a_jpeg_of_many_exif_segments_is_refused() -> None:
    exif = b"\xff\xe1" + (508).to_bytes(2, "big") + b"Exif\0\0" + bytes(500)
    data = encoded(Image.fromarray(picture()), "JPEG")
    assert images.decode(data[:2] + exif * 200 + data[2:]).shape == picture().shape
    with pytest.raises(ImageError, match="its header takes more than 4000 reads"):
        images.decode(data[:2] + exif * 2000 + data[2:])
    with pytest.raises(ImageError, match="its header has more than 16777216 bytes"):
        images.decode(data[:2] + (b"\xff\xe2\xff\xff" + bytes(65533)) * 300 + data[2:])


def test_chunks_that_are_not_used_do_no_harm_wherever_they_stand() -> None:
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(image, "PNG", exif=exif)
    profile = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20))) * 300
    unknown = png_chunk(b"aaAa", bytes(10)) * 3000
    pixels, end = plain.index(b"IDAT") - 4, len(plain) - 12
    for data in (
        plain[:pixels] + profile + plain[pixels:],
        plain[:pixels] + unknown + plain[pixels:end] + unknown + plain[end:],
        plain[:end] + profile + plain[end:] + unknown,
    ):
        assert np.array_equal(images.decode(data), images.decode(plain))
        assert len(png_chunks.without_unused_chunks(data)) < len(plain) + len(unknown) + 1


def test_a_png_of_endless_chunks_is_refused() -> None:
    data = encoded(Image.fromarray(picture()), "PNG")
    for kind in (b"IDAT", b"aaAa"):
        with pytest.raises(ImageError, match="the PNG image has more than 100000 chunks; store it again"):
            images.decode(data[:-12] + png_chunk(kind, b"") * 100_001 + data[-12:])


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_whose_directory_has_huge_arrays_is_refused(*, big: bool) -> None:
    """Pillow would make an object of each number, with Python's lock held for a second or more."""
    data = encoded(Image.fromarray(picture()), "TIFF", big_tiff=big, tiffinfo={700: bytes((1 << 20) + 1)})
    assert images.decode(data).shape == picture().shape
    entry, count = (struct.pack("<HHQ", 279, 4, 1), struct.pack("<HHQ", 279, 4, 1 << 21))
    if not big:
        entry, count = (struct.pack("<HHI", 279, 4, 1), struct.pack("<HHI", 279, 4, 1 << 21))
    assert data.count(entry) == 1
    with pytest.raises(ImageError, match="the TIFF image's directory has an entry of more than 1048576 numbers"):
        images.decode(data.replace(entry, count))


def tiled_tiff(tile: int, side: int = 16) -> bytes:
    """A grey TIFF of one deflated tile."""
    data = zlib.compress(bytes(tile * tile))
    entries = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    entries += [(324, 8 + 2 + 12 * 10 + 4), (325, len(data))]
    written = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + written + bytes(4) + data


def test_a_tiff_whose_tiles_are_far_larger_than_the_image_is_refused() -> None:
    assert images.decode(tiled_tiff(1024)).shape == (16, 16, 3)
    with pytest.raises(ImageError, match="the TIFF image of 16 x 16 pixels has tiles of 4096 x 4096; store it again"):
        images.decode(tiled_tiff(4096))


@pytest.mark.parametrize("tag", [322, 323])
@pytest.mark.parametrize("kind", [1, 2, 7], ids=["bytes", "text", "undefined"])
def test_a_tiff_whose_tiles_have_sides_of_another_type_is_refused(kind: int, tag: int) -> None:
    """Python would repeat the text or the bytes as often as the other side says, up to 4 GB of them."""
    data = tiled_tiff(1024)
    entry = struct.pack("<HHII", tag, 4, 1, 1024)
    assert data.count(entry) == 1
    with pytest.raises(ImageError, match="the TIFF image has tiles whose sides are not whole numbers; store it again"):
        images.decode(data.replace(entry, struct.pack("<HHII", tag, kind, 1, 49)))


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_of_exactly_the_limits_is_accepted(kind: str) -> None:
    data = encoded(Image.fromarray(picture(24, 40)), kind)
    assert images.decode(data, ImageLimits(len(data), 24 * 40)).shape == (24, 40, 3)
    with pytest.raises(ImageTooLargeError):
        images.decode(data, ImageLimits(len(data), 24 * 40 - 1))
    with pytest.raises(ImageTooLargeError):
        images.decode(data, ImageLimits(len(data) - 1, 24 * 40))


def test_reading_a_file_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "good.bmp").write_bytes(encoded(Image.fromarray(picture()), "BMP"))
    assert np.array_equal(images.read(tmp_path / "good.bmp"), picture())
    (tmp_path / "bad.jpg").write_bytes(b"hello")
    with pytest.raises(ImageError, match=r"bad\.jpg: the data is not an image"):
        images.read(tmp_path / "bad.jpg")
    with pytest.raises(ImageError, match=r"missing\.jpg does not exist"):
        images.read(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="cannot be read: Is a directory"):
        images.read(tmp_path)
    with pytest.raises(ImageTooLargeError, match=r"good\.bmp: the image has \d+ bytes, more than the limit of 9"):
        images.read(tmp_path / "good.bmp", ImageLimits(max_bytes=9))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
@pytest.mark.parametrize("name", [b"two\nlines.png", b"caf\xe9.png"])
def test_a_name_that_is_no_line_of_text_is_quoted(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    for data, words in ((b"", "empty"), (b"hello", "not an image")):
        path.write_bytes(data)
        with pytest.raises(ImageError, match=words) as raised:
            images.read(path)
        assert str(raised.value).isprintable()
    path.unlink()
    with pytest.raises(ImageError, match="does not exist") as raised:
        images.read(path)
    assert str(raised.value).isprintable()


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
        for name, words in {
            "loop.jpg": "cannot be read: Too many levels",
            "gone.jpg": "does not exist",
            "socket.jpg": "cannot be read: No such device",
        }.items():
            with pytest.raises(ImageError, match=words):
                images.read(tmp_path / name)


def test_threads_decode_the_same() -> None:
    files = [encoded(Image.fromarray(picture(seed=seed)), kind) for kind in FORMATS for seed in range(8)]
    alone = [images.decode(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(images.decode, files))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A valid file of some format and layout, cut short or with some bits flipped or both."""
    data = bytearray(draw(st.sampled_from(SOUND_FILES)))
    for _ in range(draw(st.integers(0, 6))):
        # The header is where the surprises are: half of the flips go there.
        position = draw(st.integers(0, min(len(data), 200) - 1) | st.integers(0, len(data) - 1))
        data[position] ^= 1 << draw(st.integers(0, 7))
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


SOUND_FILES = [
    *(encoded(Image.fromarray(picture()), kind) for kind in FORMATS),
    encoded(Image.fromarray(picture()), "JPEG", progressive=True),
    encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG"),
    encoded(Image.fromarray(picture()).quantize(9), "PNG", transparency=bytes(9)),
    encoded(Image.fromarray(picture()[:, :, 0].astype(np.uint16) * 257), "PNG"),
    encoded(Image.fromarray(picture()), "TIFF", compression="tiff_lzw"),
    encoded(Image.fromarray(picture()), "TIFF", compression="jpeg"),
    encoded(Image.fromarray(picture()[:, :, 0].astype(np.float32)), "TIFF"),
    encoded(Image.fromarray(picture()), "WEBP", lossless=True),
    encoded(Image.fromarray(picture()), "WEBP", save_all=True, append_images=[Image.fromarray(255 - picture())]),
    encoded(Image.fromarray(picture()).quantize(9), "BMP"),
]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest forgets the filter that the module puts in place
@settings(max_examples=400)
@given(st.binary(max_size=64) | damaged_files())
def test_any_bytes_give_an_image_or_an_image_error(data: bytes) -> None:
    try:
        image = images.decode(data, ImageLimits(max_pixels=2**22))
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017  # the error is only one of two good ends
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 0 < image.size <= 3 * 2**22


@pytest.mark.shared
@pytest.mark.skipif(not HARD_IMAGES.is_dir(), reason=f"no real data at {HARD_IMAGES}")
def test_awkward_real_files_decode_as_pillow_decodes_them_or_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    worst = {}
    for entry in json.loads((HARD_IMAGES / "manifest.json").read_text()):
        data = (HARD_IMAGES / entry["file"]).read_bytes()
        if entry["decode"] == "ok" and entry["format"] in ACCEPTED:
            worst[entry["file"]] = difference(images.decode(data), by_pillow(data))
        else:
            with pytest.raises(ImageError):
                images.decode(data)
    assert len(worst) >= 35
    assert {file: value for file, value in worst.items() if value > LOSSY_TOLERANCE} == {}
    # libjpeg inside OpenCV writes this one line by itself for a file with a stray byte.
    assert capfd.readouterr().err in {"", "Corrupt JPEG data: 1 extraneous bytes before marker 0xdb\n"}


def test_a_file_that_its_reader_complains_of_leaves_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "tiff")
    data = bytearray(file.getvalue())
    place = data.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel
    struct.pack_into("<H", data, place + 8, 5891)
    with pytest.raises(ImageError, match="damaged"):
        images.decode(bytes(data))
    assert not caplog.records


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "L"), ("TIFF", "RGB"), ("TIFF", "CMYK"), ("GIF", "P")],
)
def test_what_pillow_decodes_takes_its_own_copy_and_the_pixels(file_format: str, mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(2000, 2000)).convert(mode).save(file, file_format)
    release_freed_memory()
    forget_peak()
    before = resident()
    images.decode(file.getvalue())
    assert peak() - before < 9 * 2000 * 2000


def test_a_program_that_has_pillow_raise_of_bombs_keeps_that() -> None:
    code = (
        "import io, warnings; from PIL import Image\n"
        "warnings.simplefilter('error', Image.DecompressionBombWarning)\n"
        "Image.MAX_IMAGE_PIXELS = 10\n"
        "from fcnseg import images; from fcnseg.errors import ImageTooLargeError\n"
        "for kind in ('PNG', 'TIFF'):\n"
        "    file = io.BytesIO(); Image.new('RGB', (5, 3)).save(file, kind)\n"
        "    try: Image.open(file); print(kind, 'opened')\n"
        "    except Image.DecompressionBombWarning: print(kind, 'refused')\n"
        "    try: print(images.decode(file.getvalue()).shape)\n"
        "    except ImageTooLargeError as error: print(str(error)[:60])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    beyond = "the TIFF image is beyond what Pillow was told to read (Image"
    assert run.stdout.splitlines() == ["PNG refused", "(3, 5, 3)", "TIFF refused", beyond]

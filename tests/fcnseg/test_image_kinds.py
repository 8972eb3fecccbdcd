"""The kinds that each format has, beyond what Pillow itself would write: docs/images.md in executable form."""

import base64
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fcnseg import images
from fcnseg.errors import ImageError, ImageTooLargeError
from tests.image_folders import encoded

GREY, RGB, PALETTE = 0, 2, 3
SHORT, LONG, LONG8 = 3, 4, 16


def picture(height: int = 20, width: int = 28) -> NDArray[np.uint8]:
    """A picture without any symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 9, 255 - y * 12, (x * y) % 256], axis=-1).astype(np.uint8)


def packed(samples: NDArray[np.integer], bits: int) -> bytes:
    """Rows of samples of 1 to 16 bits, each row padded to whole bytes."""
    if bits == 16:
        return samples.astype(">u2").tobytes()
    places = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(places.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def png(
    samples: NDArray[np.integer], bits: int, colour: int, palette: bytes = b"", *, interlaced: bool = False
) -> bytes:
    """A PNG file of samples (H, W, C); interlaced by Adam7 on demand."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row for top, left, down, across in passes for row in samples[top::down, left::across]]
    data = b"".join(b"\0" + packed(row[None], bits) for row in rows if row.size)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"")
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(size: tuple[int, int], blocks: list[bytes], tags: dict[int, list[int]], *, big: bool = False) -> bytes:
    """A little-endian TIFF file, or BigTIFF, of uncompressed blocks: tiles where the tags have a tile's size."""
    starts = list(np.cumsum([16, *(len(block) for block in blocks)])[:-1])
    tiled = 322 in tags
    everything = {256: [size[1]], 257: [size[0]], 259: [1], 324 if tiled else 273: starts} | tags
    everything[325 if tiled else 279] = [len(block) for block in blocks]
    body = b"".join(blocks)
    place, word, width = 16 + len(body), LONG8 if big else LONG, 8 if big else 4
    entries, extra = b"", b""
    table = 8 + 20 * len(everything) + 8 if big else 2 + 12 * len(everything) + 4
    for tag, values in sorted(everything.items()):
        short = tag not in {273, 279, 324, 325}
        data = b"".join(int(v).to_bytes(2 if short else width, "little") for v in values)
        entries += struct.pack("<HHQ" if big else "<HHI", tag, SHORT if short else word, len(values))
        if len(data) > width:
            entries += (place + table + len(extra)).to_bytes(width, "little")
            extra += data
        else:
            entries += data.ljust(width, b"\0")
    if big:
        head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, place)
        return head + body + struct.pack("<Q", len(everything)) + entries + bytes(8) + extra
    head = struct.pack("<2sHI", b"II", 42, place).ljust(16, b"\0")
    return head + body + struct.pack("<H", len(everything)) + entries + bytes(4) + extra


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_grey_of_every_depth(bits: int, *, interlaced: bool) -> None:
    samples = (np.arange(19 * 21).reshape(19, 21, 1) * 977) % 2**bits
    expected = samples >> 8 if bits == 16 else samples * 255 // (2**bits - 1)
    image = images.decode(png(samples, bits, GREY, interlaced=interlaced))
    assert np.array_equal(image, np.repeat(expected, 3, axis=2))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_palettes_of_every_depth(bits: int) -> None:
    samples = np.arange(15 * 13).reshape(15, 13, 1) % 2**bits
    palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    assert np.array_equal(images.decode(png(samples, bits, PALETTE, palette.tobytes())), palette[samples[:, :, 0]])


@pytest.mark.parametrize("interlaced", [False, True])
def test_png_of_16_bit_colour_keeps_its_high_bytes(*, interlaced: bool) -> None:
    samples = picture().astype(np.uint16) * 256 + 200
    assert np.array_equal(images.decode(png(samples, 16, RGB, interlaced=interlaced)), picture())


@pytest.mark.parametrize("big", [False, True])
def test_tiff_strips_planes_and_tiles(*, big: bool) -> None:
    image = picture(32, 48)
    planes = [image[:, :, channel].tobytes() for channel in range(3)]
    tiles = [image[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    for blocks, tags in (
        ([image.tobytes()], {278: [32]}),
        (planes, {278: [32], 284: [2]}),
        (tiles, {322: [16], 323: [16]}),
    ):
        assert np.array_equal(
            images.decode(tiff((32, 48), blocks, {258: [8, 8, 8], 262: [2], 277: [3]} | tags, big=big)), image
        )


@pytest.mark.parametrize("extra", [[], [0], [0, 0], [2]], ids=["colour", "a band more", "two more", "alpha"])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_planes_of_any_depth_and_bands_beyond_colour(bits: int, extra: list[int]) -> None:
    image = picture(32, 48)
    bands = [
        image[:, :, i % 3].astype("<u2") * 257 if bits == 16 else image[:, :, i % 3] for i in range(3 + len(extra))
    ]
    tags = {258: [bits] * len(bands), 262: [2], 277: [len(bands)], 278: [32], 284: [2]}
    if extra:
        tags[338] = extra
    assert np.array_equal(images.decode(tiff((32, 48), [band.tobytes() for band in bands], tags)), image)


@pytest.mark.parametrize(("bits", "kind"), [(8, np.uint8), (16, np.uint16), (32, np.float32)])
def test_tiff_whose_white_is_zero_is_turned_at_any_depth(bits: int, kind: type[np.generic]) -> None:
    grey = picture()[:, :, 0]
    ink = (255 - grey).astype(kind) * kind(257 if bits == 16 else 1)
    tags = {258: [bits], 262: [0], 277: [1], 278: [20], 339: [3 if bits == 32 else 1]}
    assert np.array_equal(images.decode(tiff((20, 28), [ink.tobytes()], tags))[:, :, 1], grey)


def test_bigtiff_in_big_endian_order_is_not_supported_and_says_so() -> None:
    data = b"MM\0+" + struct.pack(">HHQQ", 8, 0, 16, 0) + bytes(64)
    with pytest.raises(ImageError, match=r"a kind that is not supported \(big-endian BigTIFF is unknown to Pillow\)"):
        images.decode(data)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_tiff_grey_of_few_bits(bits: int) -> None:
    samples = np.arange(16 * 16).reshape(16, 16) % 2**bits
    data = tiff((16, 16), [packed(samples, bits)], {258: [bits], 262: [1], 277: [1], 278: [16]})
    assert np.array_equal(images.decode(data)[:, :, 1], samples * 255 // (2**bits - 1))


def test_tiff_cmyk_is_converted_without_profiles() -> None:
    ink = np.concatenate([255 - picture(), np.zeros((20, 28, 1), np.uint8)], axis=2)
    data = tiff((20, 28), [ink.tobytes()], {258: [8] * 4, 262: [5], 277: [4], 278: [20]})
    assert np.array_equal(images.decode(data), picture())


def test_tiff_of_float_colour_is_not_supported_and_says_so() -> None:
    samples = picture().astype(np.float32) / 255
    tags = {258: [32] * 3, 262: [2], 277: [3], 278: [20], 339: [3] * 3}
    with pytest.raises(ImageError, match="TIFF image is of a kind that is not supported.*store it as 8-bit PNG"):
        images.decode(tiff((20, 28), [samples.tobytes()], tags))


def test_jpeg_progressive_and_arithmetic() -> None:
    progressive = images.decode(encoded(Image.fromarray(picture()), "JPEG", progressive=True, quality=95))
    assert np.array_equal(progressive, images.decode(encoded(Image.fromarray(picture()), "JPEG", quality=95)))
    image = images.decode(base64.b64decode(ARITHMETIC_JPEG))
    assert np.abs(image.astype(int) - RAMP).mean() < 8


def test_jpeg_cmyk_of_adobe_is_inverted() -> None:
    smooth = Image.fromarray(np.repeat(RAMP, 4, axis=0).repeat(4, axis=1))
    data = encoded(smooth.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(images.decode(data).astype(int) - np.asarray(smooth)).mean() < 4


def test_jpeg_of_12_bits_is_not_supported_and_says_so() -> None:
    data = encoded(Image.fromarray(picture()), "JPEG")
    precision = data.index(b"\xff\xc0") + 4
    with pytest.raises(ImageError, match="JPEG image is of a kind that is not supported .*12-bit"):
        images.decode(data[:precision] + b"\x0c" + data[precision + 1 :])


def bmp(width: int, height: int, bits: int, compression: int, palette: bytes, pixels: bytes) -> bytes:
    start = 54 + len(palette)
    head = struct.pack("<2sIII", b"BM", start + len(pixels), 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, len(palette) // 4, 0)
    return head + info + palette + pixels


def test_bmp_rows_from_the_top_alpha_and_run_lengths() -> None:
    four = np.concatenate([picture()[:, :, ::-1], np.full((20, 28, 1), 7, np.uint8)], axis=2)
    assert np.array_equal(images.decode(bmp(28, -20, 32, 0, b"", four.tobytes())), picture())
    assert np.array_equal(images.decode(bmp(28, 20, 32, 0, b"", four[::-1].tobytes())), picture())
    palette = bytes([10, 20, 30, 0, 40, 50, 60, 0])
    runs = bytes([3, 0, 1, 1, 0, 0, 4, 1, 0, 0, 0, 1])  # three of the first colour and one of the second; then four
    image = images.decode(bmp(4, 2, 8, 1, palette, runs))
    first, second = [30, 20, 10], [60, 50, 40]
    assert image.tolist() == [[second] * 4, [first, first, first, second]]


def test_gif_interlaced_animated_and_with_transparency() -> None:
    flat = Image.fromarray(picture()).quantize(64)
    expected = np.asarray(flat.convert("RGB"))
    other = Image.fromarray(255 - picture()).quantize(8)
    for options in ({"interlace": 1}, {"interlace": 0}, {"save_all": True, "append_images": [other]}):
        assert np.array_equal(images.decode(encoded(flat, "GIF", **options)), expected)
    see_through = images.decode(encoded(flat, "GIF", transparency=flat.getpixel((3, 3))))
    assert np.array_equal(see_through, expected)


def test_gif_frame_smaller_than_its_canvas_lies_where_it_says() -> None:
    data = bytearray(encoded(Image.fromarray(picture()[:, :, 0]), "GIF", interlace=0))
    data[6:10] = struct.pack("<HH", 40, 30)
    place = data.index(b"," + struct.pack("<HHHH", 0, 0, 28, 20))
    data[place + 1 : place + 5] = struct.pack("<HH", 5, 9)
    image = images.decode(bytes(data))
    assert image.shape == (30, 40, 3)
    assert np.array_equal(image[9:29, 5:33, 1], picture()[:, :, 0])
    assert np.ptp(image[:9].reshape(-1, 3), axis=0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_gif_cut_short_is_refused(share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "GIF")
    with pytest.raises(ImageError, match="GIF image is damaged or cut short"):
        images.decode(data[: int(len(data) * share)])


def test_gif_canvas_beyond_the_limits_is_refused_by_its_header() -> None:
    data = bytearray(encoded(Image.fromarray(picture()), "GIF"))
    data[6:10] = struct.pack("<HH", 65535, 65535)
    with pytest.raises(ImageTooLargeError, match="65535 x 65535"):
        images.decode(bytes(data))


def test_avif_of_10_bits_grey_and_alpha() -> None:
    assert np.abs(images.decode(base64.b64decode(AVIF_OF_10_BITS)).astype(int) - RAMP).mean() < 4
    grey = images.decode(encoded(Image.fromarray(RAMP[:, :, 0]), "AVIF", quality=100))
    assert np.abs(grey.astype(int) - RAMP[:, :, :1]).mean() < 4
    clear = np.concatenate([RAMP, np.zeros((16, 16, 1), np.uint8)], axis=2)
    data = encoded(Image.fromarray(clear), "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(images.decode(data).astype(int) - RAMP).mean() < 4


def test_avif_is_known_by_any_of_its_brands() -> None:
    data = encoded(Image.fromarray(picture()), "AVIF")
    assert data[8:12] == b"avif"
    assert np.array_equal(images.decode(data[:8] + b"mif1" + data[12:]), images.decode(data))


def test_avif_is_turned_by_its_own_properties_alone() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert images.decode(encoded(Image.fromarray(picture()), "AVIF", xmp=xmp)).shape == picture().shape


def test_avif_beyond_the_limits_is_refused_by_its_header() -> None:
    data = encoded(Image.fromarray(picture()), "AVIF")
    size = struct.pack(">II", 28, 20)
    assert size in data
    for width, height in ((20000, 20000), (70000, 10), (2**32 - 1, 2**32 - 1)):
        with pytest.raises(ImageTooLargeError, match=f"{width} x {height}"):
            images.decode(data.replace(size, struct.pack(">II", width, height)))


RAMP = np.stack([*np.mgrid[:16, :16][::-1] * 16, 255 - np.mgrid[:16, :16][1] * 8], axis=-1).astype(np.uint8)
ARITHMETIC_JPEG = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQ
ERMUFRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU
FBQUFBQUFBQUFBQUFBT/yQARCAAQABADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANlUWtji1zFxyeOO
PgbAH4sLshs0kYm7yhJzoVutNwIRh/QG6vJfJ/hpEgj/2Q==
"""
AVIF_OF_10_BITS = """
AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADybWV0YQAAAAAAAAAoaGRscgAAAAAAAAAAcGljdAAAAAAAAAAA
AAAAAGxpYmF2aWYAAAAADnBpdG0AAAAAAAEAAAAeaWxvYwAAAABEAAABAAEAAAABAAABGgAAAE0AAAAoaWluZgAAAAAAAQAA
ABppbmZlAgAAAAABAABhdjAxQ29sb3IAAAAAamlwcnAAAABLaXBjbwAAABRpc3BlAAAAAAAAABAAAAAQAAAAEHBpeGkAAAAA
AwoKCgAAAAxhdjFDgSBAAAAAABNjb2xybmNseAABAA0ABoAAAAAXaXBtYQAAAAAAAAABAAEEAQKDBAAAAFVtZGF0EgAKCDgM
/9jAQ0GkMj8RQAEEEEQAMbBwhHc+tj3fPJiX6U3f2UU+IvLwjDhM84G3yCxPbjk/gKOjLhIFzK7+1dFVA3+JtGJBM28Cx7A=
"""

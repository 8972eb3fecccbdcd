import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fcnseg import images
from fcnseg.errors import ImageError, ImageTooLargeError
from fcnseg.images import ImageLimits
from fcnseg.large_images import LargeTiff, open_windowed

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
WINDOWED = ImageLimits(max_pixels=1)
HEIGHT, WIDTH = 75, 101
REMEDY = "--co tiled=yes --co blockxsize=512 --co blockysize=512 --co compress=deflate"
UINT8, UINT16 = np.dtype(np.uint8), np.dtype(np.uint16)


def samples(bands: int, dtype: np.dtype[np.generic] = UINT8, levels: int | None = None) -> NDArray[np.generic]:
    """(bands, HEIGHT, WIDTH) patches of random samples, as photographs have them."""
    random = np.random.default_rng(bands)
    patches = random.integers(0, levels or np.iinfo(dtype).max + 1, (bands, HEIGHT // 5, WIDTH // 5 + 1))
    return np.kron(patches, np.ones((1, 5, 5), int))[:, :, :WIDTH].astype(dtype)


def write(path: Path, bands: NDArray[np.generic], **profile: object) -> Path:
    size = {"height": bands.shape[1], "width": bands.shape[2], "count": len(bands), "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **size, **profile) as file:
        file.write(bands)
        if profile.get("photometric") == "palette":
            colours = np.random.default_rng(0).integers(0, 256, (256, 3)).tolist()
            file.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(colours)})
    return path


TILED = {"tiled": True, "blockxsize": 32, "blockysize": 16}
JPEG = {"compress": "jpeg", "photometric": "ycbcr"}
KINDS: dict[str, tuple[NDArray[np.generic], dict[str, object]]] = {
    **{f"RGB, {c}": (samples(3), {"compress": c, "photometric": "rgb"}) for c in ("lzw", "zstd", "packbits", "lzma")},
    "RGB, deflate, tiled": (samples(3), {"compress": "deflate", "photometric": "rgb", **TILED}),
    "RGB, BigTIFF": (samples(3), {"photometric": "rgb", "bigtiff": "yes"}),
    "RGB, 16 bits, big-endian": (samples(3, UINT16), {"photometric": "rgb", "endianness": "big"}),
    "RGB, planes, tiled": (samples(3), {"photometric": "rgb", "interleave": "band", **TILED}),
    "RGB, 16 bits, planes": (samples(3, UINT16), {"photometric": "rgb", "interleave": "band"}),
    "RGB and more bands, planes": (samples(5), {"photometric": "rgb", "interleave": "band"}),
    "RGB, JPEG": (samples(3), {"compress": "jpeg", "photometric": "rgb"}),
    "YCbCr, JPEG": (samples(3), JPEG),
    "YCbCr, JPEG, tiled": (samples(3), {**JPEG, "tiled": True, "blockxsize": 64, "blockysize": 32}),
    "RGBA": (samples(4), {"photometric": "rgb"}),
    "RGBA, premultiplied": (samples(4), {"photometric": "rgb", "alpha": "premultiplied"}),
    "RGB, 16 bits, predictor": (samples(3, UINT16), {"photometric": "rgb", "compress": "deflate", "predictor": 2}),
    "RGBA, 16 bits": (samples(4, UINT16), {"photometric": "rgb"}),
    "RGBA, 16 bits, premultiplied": (samples(4, UINT16), {"photometric": "rgb", "alpha": "premultiplied"}),
    "RGB and more bands": (samples(5), {"photometric": "rgb"}),
    "grey": (samples(1), {}),
    "grey, white is 0": (samples(1), {"photometric": "miniswhite"}),
    "grey and alpha": (samples(2), {"photometric": "minisblack", "alpha": "unassociated"}),
    "grey, JPEG": (samples(1), {"compress": "jpeg"}),
    "grey, 16 bits": (samples(1, UINT16), {}),
    "grey, 16 bits, white is 0": (samples(1, UINT16), {"photometric": "miniswhite"}),
    **{f"grey, {n} bits": (samples(1, levels=2**n), {"nbits": n, "compress": "lzw"}) for n in (1, 2, 4)},
    **{
        f"grey, {n} bits, white is 0": (samples(1, levels=2**n), {"nbits": n, "photometric": "miniswhite"})
        for n in (1, 4)
    },
    "fax": (samples(1, levels=2), {"nbits": 1, "compress": "ccittfax4"}),
    "palette": (samples(1), {"photometric": "palette", "compress": "lzw", **TILED}),
    "CMYK": (samples(4), {"photometric": "cmyk"}),
    "CMYK, JPEG": (samples(4), {"photometric": "cmyk", "compress": "jpeg"}),
    "CMYK, 16 bits": (samples(4, UINT16), {"photometric": "cmyk"}),
    "32 bits": (samples(1, np.dtype(np.int32), 60000), TILED),
    "32 bits, unsigned": (samples(1, np.dtype(np.uint32)), {}),
    "16 bits, signed": (samples(1, np.dtype(np.int16)), {}),
    "8 bits, signed": (samples(1, np.dtype(np.int8)), {}),
    "float, of 0 to 1": (samples(1).astype(np.float32) / 255, {"compress": "deflate", **TILED}),
    "float, white is 0": (samples(1).astype(np.float32), {"photometric": "miniswhite"}),
    "float, negative too": (samples(1).astype(np.float32) - 100, {}),
}


def check_windows(path: Path, whole: NDArray[np.uint8]) -> None:
    with open_windowed(path, WINDOWED) as image:
        assert isinstance(image, LargeTiff)
        assert (image.height, image.width) == whole.shape[:2]
        height, width = whole.shape[:2]
        for rows in (slice(0, height), slice(height // 3, height // 2), slice(height - 1, height)):
            for columns in (slice(0, width), slice(width // 5, width // 2), slice(0, 1)):
                window = image.read(rows, columns)
                assert window.dtype == np.uint8
                assert window.flags.c_contiguous
                assert np.array_equal(window, whole[rows, columns])


@pytest.mark.parametrize("kind", KINDS)
def test_windows_have_the_pixels_of_the_whole_file(kind: str, tmp_path: Path) -> None:
    bands, profile = KINDS[kind]
    path = write(tmp_path / "image.tif", bands, **profile)
    whole = images.read(path)
    assert len(np.unique(whole)) >= 2
    check_windows(path, whole)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize(("bands", "dtype"), [(4, UINT16), (3, UINT8), (2, UINT16)])
def test_of_several_grey_bands_none_is_taken_for_the_picture(
    interleave: str, bands: int, dtype: np.dtype[np.generic], tmp_path: Path
) -> None:
    path = write(tmp_path / "image.tif", samples(bands, dtype), photometric="minisblack", interleave=interleave)
    with pytest.raises(ImageError, match="kind that is not supported"):
        images.read(path)
    with pytest.raises(ImageError, match=f"{bands} x {dtype.name}"), open_windowed(path, WINDOWED):
        pass


def test_blocks_that_were_never_written_are_black(tmp_path: Path) -> None:
    blocks = {"tiled": True, "blockxsize": 32, "blockysize": 32, "sparse_ok": True}
    profile = {"driver": "GTiff", "height": 64, "width": 96, "count": 3, "dtype": "uint8", **blocks, **JPEG}
    with rasterio.open(tmp_path / "image.tif", "w", **profile) as file:
        file.write(np.full((3, 32, 32), 200, np.uint8), window=((0, 32), (0, 32)))
    with open_windowed(tmp_path / "image.tif", WINDOWED) as image:
        assert np.abs(image.read(slice(0, 32), slice(0, 32)).astype(int) - 200).max() < 5
        assert image.read(slice(32, 64), slice(0, 96)).max() == 0


def test_unsigned_samples_of_32_bits_are_white_at_the_top(tmp_path: Path) -> None:
    bands = np.array([[[0, 2**31 - 1, 2**31 + 1, 2**32 - 1]]], np.uint32)
    path = write(tmp_path / "image.tif", bands)
    assert images.read(path)[0, :, 0].tolist() == [0, 127, 127, 255]
    check_windows(path, images.read(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_are_upright(orientation: int, tmp_path: Path) -> None:
    picture = Image.fromarray(np.moveaxis(samples(3), 0, 2).astype(np.uint8))
    picture.save(tmp_path / "image.tif", tiffinfo={274: orientation})
    whole = images.read(tmp_path / "image.tif")
    assert whole.shape[:2] == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
    check_windows(tmp_path / "image.tif", whole)


@pytest.mark.shared
def test_windows_of_hard_files_have_the_pixels_of_the_whole_file(shared_data: Path) -> None:
    paths = sorted((shared_data / "hard_images").glob("*.tif*"))
    assert paths
    for path in paths:
        check_windows(path, images.read(path))


def test_what_pillow_cannot_decode_is_read_in_windows_all_the_same(tmp_path: Path) -> None:
    bands = samples(3, UINT8)
    path = write(tmp_path / "image.tif", bands, photometric="rgb", compress="lerc")
    with pytest.raises(ImageError):
        images.read(path)
    check_windows(path, np.ascontiguousarray(np.moveaxis(bands, 0, 2)))


def test_tiles_far_larger_than_the_image_are_refused_before_one_is_allocated(tmp_path: Path) -> None:
    path = write(tmp_path / "image.tif", samples(3), photometric="rgb", **TILED)
    data = path.read_bytes()
    width = struct.pack("<HHI", 322, 3, 1) + struct.pack("<I", 32)
    assert width in data
    path.write_bytes(data.replace(width, struct.pack("<HHII", 322, 4, 1, 400_000_000)))
    refused = r"image\.tif: the TIFF image of 101 x 75 pixels has tiles of 400000000 x 16; store it again"
    with pytest.raises(ImageError, match=refused), open_windowed(path, WINDOWED):
        pass


@settings(max_examples=25)
@given(st.data())
def test_any_window_is_a_part_of_the_whole(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "windows.tif"
    if not path.exists():
        write(path, samples(3), tiled=True, blockxsize=64, blockysize=32, **JPEG)
    whole = images.read(path)
    rows, columns = (
        slice(*sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True))))
        for size in (HEIGHT, WIDTH)
    )
    with open_windowed(path, WINDOWED) as image:
        assert np.array_equal(image.read(rows, columns), whole[rows, columns])


def test_an_image_within_the_limits_is_read_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "image.tif", samples(3), photometric="rgb")
    with open_windowed(path) as image:
        assert not isinstance(image, LargeTiff)
        assert np.array_equal(image.read(slice(3, 9), slice(2, 5)), images.read(path)[3:9, 2:5])
    with open_windowed(path, ImageLimits(max_bytes=1000)) as image:
        assert isinstance(image, LargeTiff)


def test_what_cannot_be_read_in_windows_is_refused_in_one_line(tmp_path: Path) -> None:
    picture = Image.fromarray(np.moveaxis(samples(3), 0, 2).astype(np.uint8))
    picture.save(tmp_path / "photo.png")
    picture.convert("YCbCr").save(tmp_path / "ycbcr.tif")
    for name, reason in (("photo.png", "more than the limit of 1"), ("ycbcr.tif", "photometric interpretation 6")):
        with (
            pytest.raises(
                ImageTooLargeError, match=rf"{reason}.*, and is not read in windows; store it as a tiled TIFF"
            ) as e,
            open_windowed(tmp_path / name, WINDOWED),
        ):
            pass
        assert f"'rio convert {name} large.tif {REMEDY}'" in str(e.value)
        assert "\n" not in str(e.value)


def test_the_remedy_that_is_named_works(tmp_path: Path) -> None:
    picture = Image.fromarray(np.moveaxis(samples(3), 0, 2).astype(np.uint8))
    picture.save(tmp_path / "photo.png")
    command = [Path(sys.executable).parent / "rio", "convert", "photo.png", "large.tif"]
    subprocess.run([*command, *REMEDY.split()], cwd=tmp_path, check=True)
    check_windows(tmp_path / "large.tif", images.read(tmp_path / "photo.png"))


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def scratch(data: bytes) -> bytes:
    return data[:900] + bytes(len(data) - 900)


@pytest.mark.parametrize("damage", [cut, scratch])
@pytest.mark.parametrize("profile", [{"photometric": "rgb", "compress": "deflate", **TILED}, JPEG])
def test_damage_is_told_in_one_line(
    damage: Callable[[bytes], bytes], profile: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO(write(tmp_path / "whole.tif", np.tile(samples(3), (1, 6, 6)), **profile).read_bytes())
    path = tmp_path / "image.tif"
    path.write_bytes(damage(buffer.getvalue()))

    def read_all() -> None:
        with open_windowed(path, WINDOWED) as image:
            for row in range(0, image.height - 64, 64):
                image.read(slice(row, row + 64), slice(0, image.width))

    with pytest.raises(ImageError, match=r"image\.tif: the TIFF image is (damaged|too large)") as error:
        read_all()
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("tag", "becomes", "profile"),
    [
        pytest.param(274, (274, 2), {"photometric": "rgb"}, id="orientation as text"),
        pytest.param(279, (65000, 4), {**JPEG, "blockysize": 80}, id="no byte count of a JPEG strip"),
        pytest.param(320, (65000, 3), {"photometric": "palette"}, id="no palette"),
    ],
)
def test_tags_that_are_missing_or_of_another_type_are_damage(
    tag: int, becomes: tuple[int, int], profile: dict[str, object], tmp_path: Path
) -> None:
    path = write(tmp_path / "image.tif", samples(1 if profile["photometric"] == "palette" else 3), **profile)
    if tag == 274:
        Image.fromarray(np.moveaxis(samples(3), 0, 2).astype(np.uint8)).save(path, tiffinfo={tag: 6})
    data = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    places = range(directory + 2, directory + 2 + 12 * entries, 12)
    (place,) = (at for at in places if struct.unpack_from("<H", data, at) == (tag,))
    struct.pack_into("<HH", data, place, *becomes)
    path.write_bytes(data)
    with (
        pytest.raises(ImageError, match=r"image\.tif: the TIFF image is damaged or cut short \(.+\); store or send it"),
        open_windowed(path, WINDOWED) as image,
    ):
        image.read(slice(0, image.height), slice(0, image.width))


def test_files_that_are_not_there_or_no_images_are_told_as_ever(tmp_path: Path) -> None:
    (tmp_path / "note.tif").write_bytes(b"II*\0 and nothing more")
    for name, message in (("nix.tif", "does not exist"), ("note.tif", "damaged or cut short")):
        with pytest.raises(ImageError, match=message), open_windowed(tmp_path / name, WINDOWED):
            pass


def test_without_rasterio_one_line_names_the_extra(tmp_path: Path) -> None:
    path = write(tmp_path / "image.tif", samples(3), photometric="rgb")
    script = (
        "import sys; sys.modules['rasterio'] = None\n"
        "from pathlib import Path\nfrom fcnseg.errors import FcnsegError\nfrom fcnseg.images import ImageLimits\n"
        "from fcnseg.large_images import open_windowed\n"
        "with open_windowed(Path(sys.argv[1])) as image: print(image.height)\n"
        "try:\n  with open_windowed(Path(sys.argv[1]), ImageLimits(max_pixels=1)): pass\n"
        "except FcnsegError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    whole, windowed = ran.stdout.splitlines()
    assert whole == str(HEIGHT)
    assert windowed.endswith("without rasterio; install it with: pip install 'fcnseg[large]'")


def test_where_an_image_lies_is_known_unless_it_is_turned(tmp_path: Path) -> None:
    transform = rasterio.Affine(0.5, 0, 500000, 0, -0.5, 5400000)
    path = write(tmp_path / "map.tif", samples(3), photometric="rgb", crs="EPSG:32632", transform=transform)
    with open_windowed(path, WINDOWED) as image:
        assert isinstance(image, LargeTiff)
        assert image.georeference is not None
        assert (image.georeference.crs.to_epsg(), image.georeference.transform) == (32632, transform)
    with open_windowed(write(tmp_path / "photo.tif", samples(3)), WINDOWED) as image:
        assert isinstance(image, LargeTiff)
        assert image.georeference is None

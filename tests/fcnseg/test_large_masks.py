import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import fcnseg
from fcnseg import images
from fcnseg.errors import UsageError
from fcnseg.images import ImageLimits
from fcnseg.large_images import Georeference, open_windowed
from fcnseg.large_masks import open_mask, segment_to_mask
from fcnseg.tiling import plan_tiles
from fcnseg.types import ClassMap, LabelMap
from fcnseg.windows import ArrayImage

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
GOLDEN = Path(__file__).parent.parent / "golden" / "scenes-fcn8s.onnx"
LABELS = LabelMap.from_names(["ground", "water", "wood"])
WINDOWED = ImageLimits(max_pixels=1)


def ids(height: int, width: int, count: int, dtype: type[np.generic] = np.uint8) -> ClassMap:
    return np.random.default_rng(count).integers(0, count, (height, width)).astype(dtype)


def write_in_windows(path: Path, class_map: ClassMap, labels: LabelMap = LABELS, step: int = 300) -> None:
    height, width = class_map.shape
    with open_mask(path, height, width, labels) as mask:
        for top in range(0, height, step):
            for left in range(0, width, step):
                rows, columns = slice(top, min(top + step, height)), slice(left, min(left + step, width))
                mask.write(rows, columns, class_map[rows, columns])
        assert sum(area.pixels for area in mask.classes) == class_map.size


def test_a_mask_is_a_tiled_tiff_with_palette_and_overviews(tmp_path: Path) -> None:
    class_map = ids(1100, 1300, 3)
    write_in_windows(tmp_path / "mask.tif", class_map)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.tif"]
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert file.profile["tiled"]
        assert file.profile["compress"] == "deflate"
        assert file.nodata is None
        assert np.array_equal(file.read(1), class_map)
        assert [file.colormap(1)[info.id][:3] for info in LABELS.classes] == [info.colour for info in LABELS.classes]
        assert file.overviews(1) == [2, 4]
        assert np.array_equal(file.read(1, out_shape=(550, 650)), class_map[::2, ::2])


def test_more_than_256_classes_are_16_bits(tmp_path: Path) -> None:
    class_map = ids(700, 40, 300, np.uint16)
    write_in_windows(tmp_path / "mask.tif", class_map, LabelMap.from_names([f"class {i}" for i in range(300)]))
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert file.dtypes == ("uint16",)
        assert np.array_equal(file.read(1), class_map)


def test_a_mask_lies_where_its_image_does(tmp_path: Path) -> None:
    place = Georeference(rasterio.crs.CRS.from_epsg(32632), rasterio.Affine(0.5, 0, 500000, 0, -0.5, 5400000))
    with open_mask(tmp_path / "mask.tif", 20, 30, LABELS, place) as mask:
        mask.write(slice(0, 20), slice(0, 30), ids(20, 30, 3))
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert (file.crs, file.transform) == (place.crs, place.transform)


def test_a_mask_that_is_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    path.write_text("the old one")

    def write_half() -> None:
        with open_mask(path, 600, 600, LABELS) as mask:
            mask.write(slice(0, 300), slice(0, 600), ids(300, 600, 3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [p.name for p in tmp_path.iterdir()] == ["mask.tif"]
    assert path.read_text() == "the old one"
    with pytest.raises(UsageError, match="is a folder"), open_mask(tmp_path, 6, 6, LABELS):
        pass


@pytest.mark.parametrize("kilobytes", [60, 230, 330])
def test_a_full_disk_is_told_and_leaves_no_mask(kilobytes: int, tmp_path: Path) -> None:
    """At first in the pixels, then in the overviews; 335 kB would do."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from tests.fcnseg.test_large_masks import ids, write_in_windows\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]) * 1000,) * 2)\n"
        "write_in_windows(Path(sys.argv[1]), ids(1100, 1300, 3))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "mask.tif", str(kilobytes)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert ran.returncode == 1
    assert f"OSError: mask {tmp_path / 'mask.tif'} cannot be written" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def patches(height: int, width: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(height)
    coarse = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1)[:height, :width])


def test_an_image_becomes_the_mask_that_it_becomes_whole(tmp_path: Path) -> None:
    segmenter = fcnseg.load(GOLDEN, "cpu", threads=1)
    image = patches(450, 600)
    answer = segmenter.segment(image)
    tiling = plan_tiles(segmenter.info, 450, 600, 96)
    classes = segment_to_mask(segmenter, ArrayImage(image), tiling, tmp_path / "mask.tif")
    with rasterio.open(tmp_path / "mask.tif") as file:
        found = file.read(1)
    assert np.mean(found != answer.class_map) < 1e-4
    assert [area.info for area in classes] == [area.info for area in answer.classes]
    assert sum(area.pixels for area in classes) == image.size // 3


SEGMENT = """
import sys
from pathlib import Path
import fcnseg
from fcnseg.engine import EngineOptions
from fcnseg.images import ImageLimits
from fcnseg.large_images import open_windowed
from fcnseg.large_masks import segment_to_mask
from fcnseg.tiling import plan_tiles

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024

segmenter = fcnseg.load(sys.argv[1], "cpu", options=EngineOptions(threads=2, arena=False))
before = peak()
with open_windowed(Path(sys.argv[2]), ImageLimits(max_pixels=1)) as image:
    tiling = plan_tiles(segmenter.info, image.height, image.width, 1024)
    segment_to_mask(segmenter, image, tiling, Path(sys.argv[3]))
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 512, "blockysize": 512}, {"blockysize": 4000}])
def test_memory_does_not_grow_with_the_image(layout: dict[str, object], tmp_path: Path) -> None:
    """A tile takes 80 MB, and what GDAL keeps of blocks some more; the image alone takes 72 MB, its scores 480 MB."""
    height, width = 4000, 6000
    image = patches(height, width)
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    with rasterio.open(tmp_path / "image.tif", "w", compress="deflate", **profile, **layout) as file:
        file.write(np.moveaxis(image, 2, 0))
    ran = subprocess.run(
        [sys.executable, "-c", SEGMENT, GOLDEN, tmp_path / "image.tif", tmp_path / "mask.tif"],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, ran.stdout.split())
    assert after - before < 320
    segmenter = fcnseg.load(GOLDEN, "cpu")
    margin = segmenter.info.geometry.y.margin
    with rasterio.open(tmp_path / "mask.tif") as file, open_windowed(tmp_path / "image.tif") as opened:
        assert np.array_equal(opened.read(slice(0, 50), slice(0, 50)), image[:50, :50])
        for top, left in ((0, 0), (960, 992), (2016, 3040), (height - 992, width - 1008)):
            crop = segmenter.segment(image[top : top + 992, left : left + 992]).class_map
            inner = slice(margin, 992 - margin)
            rows, columns = ((start + inner.start, start + inner.stop) for start in (top, left))
            found = file.read(1, window=(rows, columns))
            assert np.mean(found != crop[inner, inner]) < 1e-4


def test_a_mask_read_as_an_image_has_the_colours_of_its_classes(tmp_path: Path) -> None:
    class_map = ids(60, 50, 3)
    write_in_windows(tmp_path / "mask.tif", class_map)
    with open_windowed(tmp_path / "mask.tif", WINDOWED) as image:
        window = image.read(slice(0, 60), slice(0, 50))
    assert np.array_equal(window, LABELS.palette[class_map])
    assert np.array_equal(window, images.read(tmp_path / "mask.tif"))

import io
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fcnseg
from fcnseg import masks
from fcnseg.errors import ImageError, UsageError
from fcnseg.folder import plan, segment_folder
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.pictures import Pictures
from fcnseg.regions import RegionQuery, find_regions
from fcnseg.segmenter import Segmenter
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def segmenter(tiny_model: Path) -> Segmenter:
    return fcnseg.load(tiny_model, "cpu", threads=1)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def touch(folder: Path, *names: str) -> None:
    """Write a small image under each name, whatever its suffix."""
    buffer = io.BytesIO()
    Image.fromarray(noise(5, 7)).save(buffer, "PNG")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(buffer.getvalue())


def planned_names(source: Path, output: Path) -> dict[str, str]:
    return {
        item.image.relative_to(source).as_posix(): item.mask.relative_to(output).as_posix()
        for item in plan(source, output)
    }


def test_the_output_mirrors_the_tree_and_only_images_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.JPG", "b/c.v2.tiff", "b/d/e.webp", "f.bmp", ".hidden.png", ".git/g.png", "notes.txt", "h")
    assert planned_names(tmp_path / "in", tmp_path / "out") == {
        "a.JPG": "a.png",
        "b/c.v2.tiff": "b/c.v2.png",
        "b/d/e.webp": "b/d/e.png",
        "f.bmp": "f.png",
    }


def test_images_that_would_share_a_mask_keep_their_full_names(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.jpg", "a.png", "b.jpg", "sub/a.jpg", "C.jpg", "c.webp")
    assert planned_names(tmp_path / "in", tmp_path / "out") == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "b.jpg": "b.png",
        "sub/a.jpg": "sub/a.png",
        "C.jpg": "C.jpg.png",
        "c.webp": "c.webp.png",
    }


def test_full_names_that_clash_in_turn_are_lengthened_too(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.jpg", "a.bmp", "a.jpg.tif", "a.jpg.tif.bmp")
    names = planned_names(tmp_path / "in", tmp_path / "out")
    assert len(set(names.values())) == 4
    assert names["a.jpg"] == "a.jpg.png"
    assert names["a.jpg.tif"] == "a.jpg.tif.png"


def test_the_output_inside_the_input_is_not_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "masks/a.png", "masks/sub/b.png", "masks2/c.png")
    assert planned_names(tmp_path, tmp_path / "masks") == {"a.jpg": "a.png", "masks2/c.png": "masks2/c.png"}


def test_a_single_image_may_name_a_folder_or_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "odd.name")
    (tmp_path / "x.png").mkdir()
    assert plan(tmp_path / "a.jpg", tmp_path / "out")[0].mask == tmp_path / "out" / "a.png"
    assert plan(tmp_path / "a.jpg", tmp_path / "out" / "mask.png")[0].mask == tmp_path / "out" / "mask.png"
    assert plan(tmp_path / "a.jpg", tmp_path / "x.png")[0].mask == tmp_path / "x.png" / "a.png"
    assert plan(tmp_path / "odd.name", tmp_path / "out")[0].mask == tmp_path / "out" / "odd.png"


def test_nothing_to_do_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match=r"no images in .*in; looked, at any depth, for files ending in \.jpg, \.jpeg"):
        plan(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match="nix does not exist"):
        plan(tmp_path / "nix", tmp_path / "out")


def test_a_mask_never_takes_the_place_of_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "in/b.jpg", "file.txt")
    with pytest.raises(UsageError, match="is the input folder"):
        plan(tmp_path / "in", tmp_path / "in" / ".." / "in")
    with pytest.raises(UsageError, match="would take the place of an input image"):
        plan(tmp_path / "in" / "a.png", tmp_path / "in")
    with pytest.raises(UsageError, match="would take the place of an input image"):
        plan(tmp_path / "in" / "a.png", tmp_path / "in" / "a.png")
    with pytest.raises(UsageError, match=r"file\.txt is a file"):
        plan(tmp_path / "in", tmp_path / "file.txt")


def test_an_input_inside_the_output_is_safe_from_its_masks(tmp_path: Path) -> None:
    touch(tmp_path, "out/in/a.png", "out/in/in/a.jpg")
    with pytest.raises(UsageError, match="would take the place of an input image"):
        plan(tmp_path / "out" / "in", tmp_path / "out")


def test_masks_are_those_of_the_segmenter_byte_for_byte(segmenter: Segmenter, tmp_path: Path) -> None:
    sources = {}
    for i in range(12):
        sources[f"{i:02d}.png"] = noise(10 + i, 30 - i, i)
        Image.fromarray(sources[f"{i:02d}.png"]).save(tmp_path / f"{i:02d}.png")
    results = list(segment_folder(segmenter, plan(tmp_path, tmp_path / "out")))
    assert [result.image.name for result in results] == sorted(sources)
    for result in results:
        expected = segmenter.segment(sources[result.image.name])
        assert result.error is None
        assert result.mask is not None
        assert result.mask.read_bytes() == masks.encode(expected.class_map, Encoding.PNG, expected.label_map)
        assert result.classes == expected.classes
    assert len(list((tmp_path / "out").iterdir())) == 12


def test_a_broken_image_is_reported_in_its_turn_and_the_others_are_done(segmenter: Segmenter, tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.png" for i in range(9)))
    (tmp_path / "3.png").write_bytes(b"broken")
    (tmp_path / "8.png").write_bytes((tmp_path / "8.png").read_bytes()[:60])
    Image.fromarray(noise(50, 50)).save(tmp_path / "5.png")
    limits = ImageLimits(max_pixels=100)
    results = list(segment_folder(segmenter, plan(tmp_path, tmp_path / "out"), limits=limits, workers=1))
    assert [result.image.name for result in results if result.error] == ["3.png", "5.png", "8.png"]
    for result in results:
        if result.error:
            assert isinstance(result.error, ImageError)
            assert str(result.image) in str(result.error)
            assert result.mask is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{i}.png" for i in (0, 1, 2, 4, 6, 7)]


def test_a_model_that_fails_on_an_image_is_reported(tmp_path: Path) -> None:
    broken = fcnseg.load(write_tiny_model(tmp_path / "m.onnx", fails_on_magenta=True), "cpu")
    (tmp_path / "in").mkdir()
    Image.new("RGB", (7, 5), "magenta").save(tmp_path / "in" / "a.png")
    (result,) = segment_folder(broken, plan(tmp_path / "in", tmp_path / "out"))
    assert "Reshape" in str(result.error)
    assert not (tmp_path / "out").exists()


def test_pictures_stand_beside_the_mask(segmenter: Segmenter, tmp_path: Path) -> None:
    touch(tmp_path / "in", "a/b.png")
    pictures = Pictures(overlay=True, heatmaps=(segmenter.info.label_map.find("green"),))
    (result,) = segment_folder(segmenter, plan(tmp_path / "in", tmp_path / "out"), pictures=pictures)
    assert [path.name for path in result.pictures] == ["b.overlay.jpg", "b.heatmap-1-green.jpg"]
    for path in result.pictures:
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("JPEG", (7, 5))


def test_names_of_pictures_hold_no_separators(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx", class_count=2, class_names=("road/kerb (wet)", "*"))
    segmenter = fcnseg.load(model, "cpu")
    touch(tmp_path / "in", "a.png")
    pictures = Pictures(heatmaps=segmenter.info.label_map.classes)
    (result,) = segment_folder(segmenter, plan(tmp_path / "in", tmp_path / "out"), pictures=pictures)
    assert [path.name for path in result.pictures] == ["a.heatmap-0-road_kerb_wet.jpg", "a.heatmap-1-.jpg"]


def test_a_caller_who_stops_listening_stops_the_work(segmenter: Segmenter, tmp_path: Path) -> None:
    touch(tmp_path / "in", *(f"{i:03d}.png" for i in range(100)))
    results = segment_folder(segmenter, plan(tmp_path / "in", tmp_path / "out"), workers=1)
    assert next(results).mask == tmp_path / "out" / "000.png"
    results.close()  # type: ignore[attr-defined]
    assert len(list((tmp_path / "out").iterdir())) < 20


def test_an_output_that_cannot_be_written_ends_the_job(segmenter: Segmenter, tmp_path: Path) -> None:
    touch(tmp_path / "in", "a/b.png", "c.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("a file where a folder must be")
    with pytest.raises(UsageError, match="out/a is not a folder"):
        list(segment_folder(segmenter, plan(tmp_path / "in", tmp_path / "out")))


def save(path: Path, size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def test_a_picture_never_takes_the_place_of_an_image(segmenter: Segmenter, tmp_path: Path) -> None:
    image = save(tmp_path / "x.overlay.jpg")
    before = image.read_bytes()
    planned = plan(image, tmp_path / "x.png")
    with pytest.raises(UsageError, match="would take the place of an input image"):
        list(segment_folder(segmenter, planned, pictures=Pictures(overlay=True)))
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "pictures"),
    [("x.heatmap-2-blue.jpg", Pictures(top=1)), ("x.regions.json", Pictures(regions=RegionQuery()))],
)
def test_no_picture_that_may_be_written_takes_the_place_of_an_image(
    segmenter: Segmenter, tmp_path: Path, name: str, pictures: Pictures
) -> None:
    image = save(tmp_path / "x.png").rename(tmp_path / name)
    before = image.read_bytes()
    with pytest.raises(UsageError, match="would take the place of an input image"):
        list(segment_folder(segmenter, plan(image, tmp_path / "x.png"), pictures=pictures))
    assert image.read_bytes() == before


def test_top_classes_and_regions_are_those_of_the_segmenter(segmenter: Segmenter, tmp_path: Path) -> None:
    sources = [noise(12, 20, seed) for seed in range(3)]
    for i, source in enumerate(sources):
        save(tmp_path / "in" / f"{i}.png")
        Image.fromarray(source).save(tmp_path / "in" / f"{i}.png")
    query = RegionQuery(("green",), 0.6)
    pictures = Pictures(heatmaps=segmenter.info.label_map.classes[:1], top=2, regions=query)
    results = segment_folder(segmenter, plan(tmp_path / "in", tmp_path / "out"), pictures=pictures)
    for source, result in zip(sources, results, strict=True):
        expected = segmenter.segment(source)
        assert result.top == expected.strongest(2)
        assert result.regions == find_regions(expected, segmenter.info.geometry, query)
        drawn = {0, *(peak.info.id for peak in result.top)}
        assert {int(path.name.split("-")[1]) for path in result.pictures if path.suffix == ".jpg"} == drawn
        assert len(result.pictures) == len(drawn) + 1


def test_an_image_too_wide_for_its_pictures_fails_alone(segmenter: Segmenter, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", (70000, 1))
    save(tmp_path / "in" / "b.png")
    planned = plan(tmp_path / "in", tmp_path / "out")
    wide, usual = segment_folder(segmenter, planned, pictures=Pictures(overlay=True))
    assert isinstance(wide.error, ImageError)
    assert "a.png" in str(wide.error)
    assert usual.error is None


def test_a_name_too_long_for_its_pictures_fails_alone(segmenter: Segmenter, tmp_path: Path) -> None:
    long = save(tmp_path / "in" / ("a" * 245 + ".png"))
    save(tmp_path / "in" / "b.png")
    planned = plan(tmp_path / "in", tmp_path / "out")
    first, second = segment_folder(segmenter, planned, pictures=Pictures(overlay=True))
    assert isinstance(first.error, ImageError)
    assert long.name in str(first.error)
    assert second.error is None
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["b.overlay.jpg", "b.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png")
    os.mkfifo(tmp_path / "in" / "b.png")
    assert [item.image.name for item in plan(tmp_path / "in", tmp_path / "out")] == ["a.png"]
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        plan(tmp_path / "in" / "b.png", tmp_path / "out")

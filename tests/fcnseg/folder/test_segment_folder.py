import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

import fcnseg
from fcnseg import masks
from fcnseg.cores import physical_cores
from fcnseg.errors import ImageError, UsageError
from fcnseg.files import sha256_of
from fcnseg.folder import FolderOptions, LocalModel, MaskFormat, mask_files, segment_folder
from fcnseg.folder.answers import LocalAnswer
from fcnseg.folder.local_model import open_model
from fcnseg.folder.models import Loaded
from fcnseg.geotiff import read_geo_tags, tiff_info
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.regions import RegionQuery, find_regions
from fcnseg.segmenter import Segmenter
from fcnseg.tuning import Settings, Tuning, this_machine
from tests.gated_segmenter import GatedSegmenter
from tests.image_folders import noise, save, touch, write_noise
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def segmenter(tiny_model: Path) -> Segmenter:
    return fcnseg.load(tiny_model, "cpu", threads=1)


def test_masks_are_those_of_the_segmenter_byte_for_byte(segmenter: Segmenter, tmp_path: Path) -> None:
    sources = {}
    for i in range(12):
        sources[f"{i:02d}.png"] = noise(10 + i, 30 - i, i)
        Image.fromarray(sources[f"{i:02d}.png"]).save(tmp_path / f"{i:02d}.png")
    results = list(segment_folder(segmenter, tmp_path, tmp_path / "out"))
    assert [result.image.name for result in results] == sorted(sources)
    for result in results:
        expected = segmenter.segment(sources[result.image.name])
        assert result.error is None
        assert result.mask is not None
        assert result.mask.read_bytes() == masks.encode(expected.class_map, Encoding.PNG, expected.label_map)
        assert result.classes == expected.classes
    assert len(list((tmp_path / "out").glob("*.png"))) == 12


def test_a_broken_image_is_reported_in_its_turn_and_the_others_are_done(segmenter: Segmenter, tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.png" for i in range(9)))
    (tmp_path / "3.png").write_bytes(b"broken")
    (tmp_path / "8.png").write_bytes((tmp_path / "8.png").read_bytes()[:60])
    Image.fromarray(noise(50, 50)).save(tmp_path / "5.png")
    limits = ImageLimits(max_pixels=100)
    results = list(segment_folder(segmenter, tmp_path, tmp_path / "out", FolderOptions(limits=limits, workers=1)))
    assert [result.image.name for result in results if result.error] == ["3.png", "5.png", "8.png"]
    for result in results:
        if result.error:
            assert isinstance(result.error, ImageError)
            assert str(result.image) in str(result.error)
            assert result.mask is None
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [f"{i}.png" for i in (0, 1, 2, 4, 6, 7)]


@pytest.mark.parametrize("pattern", ["", "/**/*.png"])
def test_a_link_to_a_file_that_is_away_is_an_image_that_failed(
    segmenter: Segmenter, tmp_path: Path, pattern: str
) -> None:
    """As in a checkout whose large files were not fetched: passed over, they would be missed by nobody."""
    touch(tmp_path / "in", "here.png")
    (tmp_path / "in" / "away.png").symlink_to(tmp_path / "store" / "0f3a")
    (tmp_path / "in" / ".#hidden.png").symlink_to("an editor's mark")
    away, here = segment_folder(segmenter, f"{tmp_path}/in{pattern}", tmp_path / "out")
    assert str(away.error) == (
        f"image {tmp_path}/in/away.png is a link to {tmp_path}/store/0f3a, which does not exist; bring it back"
    )
    assert here.error is None
    touch(tmp_path / "store", "0f3a")
    assert all(done.error is None for done in segment_folder(segmenter, f"{tmp_path}/in{pattern}", tmp_path / "out"))


def test_an_image_whose_name_leaves_no_room_for_its_masks_is_told_what_to_do(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    name = "x" * 250 + ".png"
    touch(tmp_path / "in", name)
    (done,) = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", FolderOptions(overlay=True))
    assert str(done.error) == (
        f"{tmp_path}/in/{name}: the name of its mask's file, or of a picture's, would be too long; rename the image"
    )


def test_a_broken_image_of_an_odd_name_is_named_once_and_as_it_can_be_shown(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    (tmp_path / "a\x1b[31m\n.png").write_bytes(b"broken")
    (done,) = segment_folder(segmenter, tmp_path, tmp_path / "out")
    assert str(done.error).startswith(f"'{tmp_path}/a\\x1b[31m\\n.png': the data is not an image")


def test_a_model_that_fails_on_an_image_is_reported(tmp_path: Path) -> None:
    broken = fcnseg.load(write_tiny_model(tmp_path / "m.onnx", fails_on_magenta=True), "cpu")
    (tmp_path / "in").mkdir()
    Image.new("RGB", (7, 5), "magenta").save(tmp_path / "in" / "a.png")
    (result,) = segment_folder(broken, tmp_path / "in", tmp_path / "out")
    assert "Reshape" in str(result.error)
    assert not list((tmp_path / "out").glob("*.png"))


def test_pictures_stand_beside_the_mask(segmenter: Segmenter, tmp_path: Path) -> None:
    touch(tmp_path / "in", "a/b.png")
    options = FolderOptions(overlay=True, heatmaps=("green",))
    (result,) = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options)
    assert [path.name for path in result.pictures] == ["b.overlay.jpg", "b.heatmap-1-green.jpg"]
    for path in result.pictures:
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("JPEG", (7, 5))


def test_names_of_pictures_hold_no_separators(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx", class_count=2, class_names=("road/kerb (wet)", "*"))
    segmenter = fcnseg.load(model, "cpu")
    touch(tmp_path / "in", "a.png")
    options = FolderOptions(heatmaps=("0", "1"))
    (result,) = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options)
    assert [path.name for path in result.pictures] == ["a.heatmap-0-road_kerb_wet.jpg", "a.heatmap-1-.jpg"]


def test_a_caller_who_stops_listening_stops_the_work(segmenter: Segmenter, tmp_path: Path) -> None:
    touch(tmp_path / "in", *(f"{i:03d}.png" for i in range(100)))
    results = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", FolderOptions(workers=1))
    assert next(results).mask == tmp_path / "out" / "000.png"
    results.close()  # type: ignore[attr-defined]
    assert len(list((tmp_path / "out").iterdir())) < 20


def test_an_output_that_cannot_be_written_ends_the_job(segmenter: Segmenter, tmp_path: Path) -> None:
    touch(tmp_path / "in", "a/b.png", "c.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("a file where a folder must be")
    with pytest.raises(UsageError, match="out/a is not a folder"):
        list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))


def test_a_picture_never_takes_the_place_of_an_image(segmenter: Segmenter, tmp_path: Path) -> None:
    image = save(tmp_path / "x.overlay.jpg")
    before = image.read_bytes()
    with pytest.raises(UsageError, match="would take the place of an input image"):
        list(segment_folder(segmenter, image, tmp_path / "x.png", FolderOptions(overlay=True)))
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.heatmap-2-blue.jpg", FolderOptions(top=1)),
        ("x.regions.json", FolderOptions(regions=RegionQuery())),
        ("x.confidence.png", FolderOptions(confidence=True)),
    ],
)
def test_no_picture_that_may_be_written_takes_the_place_of_an_image(
    segmenter: Segmenter, tmp_path: Path, name: str, options: FolderOptions
) -> None:
    image = save(tmp_path / "x.png").rename(tmp_path / name)
    before = image.read_bytes()
    with pytest.raises(UsageError, match="would take the place of an input image"):
        list(segment_folder(segmenter, image, tmp_path / "x.png", options))
    assert image.read_bytes() == before


def test_top_classes_and_regions_are_those_of_the_segmenter(segmenter: Segmenter, tmp_path: Path) -> None:
    sources = [noise(12, 20, seed) for seed in range(3)]
    for i, source in enumerate(sources):
        save(tmp_path / "in" / f"{i}.png")
        Image.fromarray(source).save(tmp_path / "in" / f"{i}.png")
    query = RegionQuery(("green",), 0.6)
    options = FolderOptions(heatmaps=("red",), top=2, regions=query)
    results = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options)
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
    options = FolderOptions(overlay=True)
    wide, usual = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options)
    assert isinstance(wide.error, ImageError)
    assert "a.png" in str(wide.error)
    assert usual.error is None


def test_a_name_too_long_for_its_pictures_fails_alone(segmenter: Segmenter, tmp_path: Path) -> None:
    long = save(tmp_path / "in" / ("a" * 245 + ".png"))
    save(tmp_path / "in" / "b.png")
    options = FolderOptions(overlay=True, report=False)
    first, second = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options)
    assert isinstance(first.error, ImageError)
    assert long.name in str(first.error)
    assert second.error is None
    assert [p.name for p in sorted((tmp_path / "out").glob("*.???"))] == ["b.overlay.jpg", "b.png"]


@pytest.mark.parametrize(
    ("suffix", "mask_format"),
    [(".png", "png"), (".tif", "tiff"), (".tiff", "tiff"), (".npy", "npy"), (".json", "coco")],
)
def test_the_name_of_a_single_mask_chooses_its_format(
    segmenter: Segmenter, tmp_path: Path, suffix: str, mask_format: str
) -> None:
    Image.fromarray(noise(12, 20)).save(tmp_path / "a.png")
    (result,) = segment_folder(segmenter, tmp_path / "a.png", tmp_path / f"mask{suffix}")
    expected = segmenter.segment(noise(12, 20))
    assert result.mask == tmp_path / f"mask{suffix}"
    found = mask_files.read(result.mask, MaskFormat(mask_format), segmenter.info.label_map)
    assert np.array_equal(found, expected.class_map)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", f"mask{suffix}"]


def test_the_stored_orientation_can_be_kept(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(12, 20)).save(tmp_path / "in" / "a.png", exif=exif)
    (upright,) = segment_folder(segmenter, tmp_path / "in", tmp_path / "upright")
    (stored,) = segment_folder(segmenter, tmp_path / "in", tmp_path / "stored", FolderOptions(upright=False))
    assert (upright.row.height, upright.row.width) == (20, 12)
    assert (stored.row.height, stored.row.width) == (12, 20)


def test_a_mask_of_unknown_origin_is_not_overwritten(segmenter: Segmenter, tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png")
    touch(tmp_path / "out", "a.png")
    before = (tmp_path / "out" / "a.png").read_bytes()
    with pytest.raises(UsageError, match=r"no fcnseg\.json says by which model"):
        list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    (result,) = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", FolderOptions(overwrite=True))
    assert result.error is None


def test_memory_for_one_image_is_enough(segmenter: Segmenter, tmp_path: Path) -> None:
    names = write_noise(tmp_path / "in", 20)
    options = FolderOptions(memory_bytes=1, tile="none", workers=3, batch=4)
    results = list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options))
    assert [result.image.name for result in results] == names
    assert all(result.error is None for result in results)


class CountingModel(LocalModel):
    """Tells how many images are being read: each asks for memory, and with one worker when the one before is read."""

    def __init__(self, segmenter: Segmenter, options: FolderOptions, at_a_time: int = 1) -> None:
        super().__init__(segmenter, options, at_a_time=at_a_time)
        self.reading = threading.Semaphore(0)

    def held_bytes(self, height: int, width: int) -> int:
        """Return what an image takes until it is written, in bytes."""
        self.reading.release()
        return super().held_bytes(height, width)


@contextmanager
def under_way(model: LocalModel, source: Path, output: Path, options: FolderOptions) -> Iterator[Future[int]]:
    """Segment a folder in another thread; yield how many images are done without an error."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(lambda: sum(r.error is None for r in segment_folder(model, source, output, options)))


def write_alike(folder: Path, count: int) -> list[str]:
    """Write images of one size and random colours, and return their names."""
    folder.mkdir()
    for i in range(count):
        Image.fromarray(noise(40, 40, i)).save(folder / f"{i:02d}.png")
    return [f"{i:02d}.png" for i in range(count)]


def test_images_under_way_take_no_more_memory_than_there_is(tiny_model: Path, tmp_path: Path) -> None:
    for i in range(20):
        save(tmp_path / "in" / f"{i:02d}.png", (40, 40))  # black: their files are small
    gated = GatedSegmenter(tiny_model)
    file_bytes, held = (
        (tmp_path / "in" / "00.png").stat().st_size,
        LocalModel(gated, FolderOptions()).held_bytes(40, 40),
    )
    assert held >= 40 * 40 * (3 + 1) + 20 * 20 * 3 * 4  # pixels and ids, and scores at the cells
    assert 20 * file_bytes < held
    options = FolderOptions(memory_bytes=3 * held + 4 * file_bytes, tile="none", workers=1)
    model = CountingModel(gated, options)
    with under_way(model, tmp_path / "in", tmp_path / "out", options) as done:
        try:
            assert all(model.reading.acquire(timeout=60) for _ in range(4))  # three fit, and one waits
            assert not model.reading.acquire(timeout=0.3)
        finally:
            gated.gate.set()
        assert done.result(60) == 20


def test_images_that_are_read_meanwhile_run_together(tiny_model: Path, tmp_path: Path) -> None:
    names = write_alike(tmp_path / "in", 20)
    for batch in (1, 8):
        gated, options = GatedSegmenter(tiny_model), FolderOptions(batch=batch, workers=1)
        model = CountingModel(gated, options)
        with under_way(model, tmp_path / "in", tmp_path / f"{batch}", options) as done:
            try:
                assert gated.begun.acquire(timeout=60)
                ready = 20 if batch == 8 else 5
                assert all(model.reading.acquire(timeout=60) for _ in range(ready))
            finally:
                gated.gate.set()
            assert done.result(60) == 20
        sizes = [len(images) for images in gated.batches]
        assert (sizes[1], max(sizes), sum(sizes)) == (batch, batch, 20)
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "8" / name).read_bytes()


def test_two_images_run_at_a_time(tiny_model: Path, tmp_path: Path) -> None:
    write_alike(tmp_path / "in", 8)
    gated, options = GatedSegmenter(tiny_model), FolderOptions()
    with under_way(LocalModel(gated, options, at_a_time=2), tmp_path / "in", tmp_path / "out", options) as done:
        try:
            assert all(gated.begun.acquire(timeout=60) for _ in range(2))
            assert not gated.begun.acquire(timeout=0.3)
        finally:
            gated.gate.set()
        assert done.result(60) == 8


def test_an_image_in_tiles_has_all_runs_to_itself(tiny_model: Path, tmp_path: Path) -> None:
    plain, large = (Loaded(tmp_path / "a.png", tmp_path / "b.png", noise(side, side)) for side in (30, 300))
    for order in ([plain, large, plain], [large, plain]):
        gated = GatedSegmenter(tiny_model)
        model = LocalModel(gated, FolderOptions(tile=64), at_a_time=2)
        with ThreadPoolExecutor(len(order)) as threads:
            outcomes = [threads.submit(model.segment, [order[0]])]
            try:
                # An image takes one of the two turns; one in tiles takes both, a tile each.
                assert all(gated.begun.acquire(timeout=60) for _ in range(1 if order[0] is plain else 2))
                for loaded in order[1:]:
                    outcomes.append(threads.submit(model.segment, [loaded]))
                    assert not gated.begun.acquire(timeout=0.3)
            finally:
                gated.gate.set()
            assert all(isinstance(outcome.result(60)[0], LocalAnswer) for outcome in outcomes)
        shapes = [image.shape for (image,) in gated.batches]
        assert [shape == (30, 30, 3) for shape in shapes] == [
            part for loaded in order for part in ([True] if loaded is plain else [False] * 25)
        ]


def test_masks_do_not_depend_on_how_many_images_run_at_a_time(segmenter: Segmenter, tmp_path: Path) -> None:
    for i in range(8):
        Image.fromarray(noise(30 + 10 * (i % 3), 40, i)).save(tmp_path / f"{i}.png")
    costs = segmenter.engine.measured().plain_bytes_per_pixel
    options = FolderOptions(memory_bytes=int(2 * costs * 40 * 40))
    for name, at_a_time in (("one", 1), ("two", 2)):
        model = LocalModel(segmenter, options, at_a_time=at_a_time)
        list(segment_folder(model, tmp_path, tmp_path / name, options))
    for i in range(8):
        assert (tmp_path / "one" / f"{i}.png").read_bytes() == (tmp_path / "two" / f"{i}.png").read_bytes()


def test_how_a_net_that_looks_at_whole_images_is_given_them_depends_on_the_memory_alone(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.onnx", global_context=("gate",))
    segmenter = fcnseg.load(path, "cpu", threads=1)
    costs = segmenter.engine.measured().plain_bytes_per_pixel
    for i, side in enumerate((40, 60, 90)):
        Image.fromarray(noise(side, side, i)).save(tmp_path / f"{i}.png")
    options = FolderOptions(memory_bytes=int(2 * costs * 64 * 64))
    told = []
    for at_a_time in (1, 2, 4):
        tiles: dict[str, int] = {}
        model = LocalModel(
            segmenter, options, lambda path, _, total, tiles=tiles: tiles.update({path.name: total}), at_a_time
        )
        list(segment_folder(model, tmp_path, tmp_path / str(at_a_time), options))
        told.append((model.tile, sorted(tiles)))
    assert told == [(f"auto, {options.memory_bytes // 2} bytes a run", ["2.png"])] * 3
    for i in range(3):
        assert len({(tmp_path / str(at_a_time) / f"{i}.png").read_bytes() for at_a_time in (1, 2, 4)}) == 1


@pytest.mark.skipif(physical_cores() < 2, reason="there is one core")
def test_many_images_run_two_at_a_time_on_half_of_the_cores_each(tiny_model: Path, tmp_path: Path) -> None:
    many, single, threads = (
        open_model(tiny_model, "cpu", **options)  # type: ignore[arg-type]
        for options in ({}, {"single": True}, {"threads": 1})
    )
    assert [runs for _, runs in (many, single, threads)] == [2, 1, 1]
    assert many[0].engine.options.threads == -(-physical_cores() // 2)
    assert single[0].engine.options.threads == 0
    model = tmp_path / "m.onnx"
    model.write_bytes(tiny_model.read_bytes())
    settings = Settings(threads=1, spinning=False, runners=3)
    Tuning(sha256_of(model), this_machine("cpu"), "throughput", ((8, 8),), settings, ()).write(model)
    tuned, runs = open_model(model, "cpu")
    assert (tuned.engine.options.threads, runs) == (1, 3)
    assert tuned.tuned == settings


@pytest.mark.skipif(physical_cores() < 2, reason="there is one core")
def test_threads_that_were_found_for_one_client_are_not_said_to_be_used_for_many_images(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(tiny_model.read_bytes())
    settings = Settings(threads=1, spinning=True)
    Tuning(sha256_of(model), this_machine("cpu"), "latency", ((8, 8),), settings, ()).write(model)
    segmenter, runs = open_model(model, "cpu")
    assert (runs, segmenter.tuned) == (2, Settings(spinning=True))


def test_of_a_batch_only_the_image_that_fails_fails(tmp_path: Path) -> None:
    segmenter = fcnseg.load(write_tiny_model(tmp_path / "m.onnx", fails_on_magenta=True), "cpu")
    for i in range(9):
        pixels = noise(8, 8, i)
        pixels[0, 0] = (255, 0, 255) if i == 4 else (0, 0, 0)
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    results = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", FolderOptions(batch=8))
    assert [result.image.name for result in results if result.error] == ["4.png"]


def test_two_programs_do_not_write_into_one_folder(segmenter: Segmenter, tmp_path: Path) -> None:
    write_noise(tmp_path / "in", 30)
    first = segment_folder(segmenter, tmp_path / "in", tmp_path / "out")
    next(first)
    with pytest.raises(UsageError, match="another program is segmenting into"):
        next(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    assert len(list(first)) == 29


def test_an_image_whose_run_would_take_too_much_memory_goes_in_tiles(segmenter: Segmenter, tmp_path: Path) -> None:
    Image.fromarray(noise(500, 700)).save(tmp_path / "a.png")
    for name, options, in_tiles in (
        ("whole", FolderOptions(tile="none"), False),
        ("fits", FolderOptions(), False),
        ("tiles", FolderOptions(tile=64, confidence=True), True),
        ("little", FolderOptions(memory_bytes=1 << 20), True),
    ):
        steps: list[tuple[int, int]] = []
        model = LocalModel(segmenter, options, lambda _, done, total, steps=steps: steps.append((done, total)))
        (result,) = segment_folder(model, tmp_path / "a.png", tmp_path / f"{name}.png", options)
        assert (result.error, result.notice) == (None, None)
        assert steps == [(done, len(steps)) for done in range(len(steps))]
        assert (len(steps) > 1) == in_tiles
    whole = (tmp_path / "whole.png").read_bytes()
    assert (tmp_path / "tiles.png").read_bytes() == whole
    assert (tmp_path / "little.png").read_bytes() == whole


def test_an_image_beyond_the_limits_gets_a_tiff_mask_window_by_window(segmenter: Segmenter, tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="pip install 'fcnseg[large]'")
    pixels = noise(300, 400)
    for folder in ("in", "png"):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / ("a.tif" if folder == "in" else "a.png"))
    limits = ImageLimits(max_pixels=1000)
    options = FolderOptions(mask_format=MaskFormat.TIFF, limits=limits, tile=64)
    (result,) = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options)
    assert result.error is None
    found = mask_files.read(tmp_path / "out" / "a.tif", MaskFormat.TIFF, segmenter.info.label_map)
    expected = segmenter.segment(pixels)
    assert np.array_equal(found, expected.class_map)
    assert result.classes == expected.classes
    (again,) = segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options)
    assert again.skipped
    refused = FolderOptions(limits=limits, overlay=True)
    (result,) = segment_folder(segmenter, tmp_path / "in", tmp_path / "other", refused)
    assert "use --format tiff" in str(result.error)
    (result,) = segment_folder(segmenter, tmp_path / "png", tmp_path / "third", options)
    assert isinstance(result.error, ImageError)


def test_a_mask_lies_on_earth_where_its_image_does(segmenter: Segmenter, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="pip install 'fcnseg[large]'")
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 412000, 0, -0.5, 5654000)}
    pixels = noise(30, 40)
    (tmp_path / "in").mkdir()
    size = {"driver": "GTiff", "height": 30, "width": 40, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    with rasterio.open(tmp_path / "in" / "a.tif", "w", **size, **place) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    with TiffImagePlugin.TiffImageFile(tmp_path / "in" / "a.tif") as plain:
        tags = tiff_info(read_geo_tags(plain.tag_v2))
        tags[274] = 6
        plain.save(tmp_path / "in" / "turned.tif", tiffinfo=tags)
    options = FolderOptions(mask_format=MaskFormat.TIFF)
    assert all(done.error is None for done in segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options))
    with rasterio.open(tmp_path / "out" / "a.tif") as mask:
        assert mask.crs == rasterio.CRS.from_string(place["crs"])
        assert mask.transform == place["transform"]
        assert np.array_equal(mask.read(1), segmenter.segment(pixels).class_map)
    with warnings.catch_warnings(action="ignore"), rasterio.open(tmp_path / "out" / "turned.tif") as mask:
        assert mask.crs is None
        assert mask.transform.is_identity
    stored = FolderOptions(mask_format=MaskFormat.TIFF, upright=False)
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "stored", stored))
    masks = [(tmp_path / "stored" / name).read_bytes() for name in ("a.tif", "turned.tif")]
    assert masks[0] == masks[1]


@pytest.mark.parametrize(
    ("kind", "values"), [(2, b"EPSG"), (12, b"\xff" * 64), (3, b"\1\0" * 40000)], ids=["text", "floats", "huge"]
)
def test_damaged_tags_of_a_place_on_earth_cost_the_place_alone(
    segmenter: Segmenter, tmp_path: Path, kind: int, values: bytes
) -> None:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory.tagtype[34735] = kind
    directory[34735] = values.decode("latin-1") if kind == 2 else struct.unpack(f"<{len(values) // 2}H", values)
    (tmp_path / "in").mkdir()
    picture = Image.fromarray(noise(10, 12))
    picture.save(tmp_path / "in" / "a.tif", tiffinfo=directory)
    picture.save(tmp_path / "in" / "plain.tif")
    options = FolderOptions(mask_format=MaskFormat.TIFF)
    assert all(done.error is None for done in segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options))
    assert (tmp_path / "out" / "a.tif").read_bytes() == (tmp_path / "out" / "plain.tif").read_bytes()


def test_no_file_is_open_where_it_is_replaced(segmenter: Segmenter, tmp_path: Path) -> None:
    """Windows would refuse."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("looks at open files in /proc")
    replaced: list[str] = []
    found_open: list[str] = []

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event != "os.rename" or tmp_path not in Path(str(arguments[1])).parents:
            return
        replaced.append(Path(str(arguments[1])).name)
        for descriptor in descriptors.iterdir():
            with suppress(OSError):
                if descriptor.readlink() in {Path(str(name)) for name in arguments[:2]}:
                    found_open.append(str(arguments[1]))

    sys.addaudithook(look)
    write_noise(tmp_path / "in", 1)
    options = FolderOptions(MaskFormat.COCO, overlay=True, regions=RegionQuery())
    for _ in range(2):
        list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options))
    assert {"000.json", "000.overlay.jpg", "manifest.jsonl", "report.html", "coco.json", "fcnseg.json"} <= set(replaced)
    assert not found_open


def test_one_text_is_no_list_of_heatmaps() -> None:
    with pytest.raises(UsageError, match=r"heatmaps is the text 'red'; give a list of names, such as \['red'\]"):
        FolderOptions(heatmaps=cast("tuple[str, ...]", "red"))

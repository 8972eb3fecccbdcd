import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcnseg
from fcnseg import masks
from fcnseg.cli import main
from tests.image_folders import save


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fcnseg", "segment", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :15, 0] = image[:, 15:, 1] = 200
    Image.fromarray(image).save(folder / "one.png")
    Image.fromarray(image).save(folder / "sub" / "two.bmp")
    return folder


def test_a_folder_is_segmented_and_summed_up(tiny_model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    done = run(tiny_model, photos, out, "--overlay", "--heatmap", "red", "--heatmap", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    names = {path.relative_to(out).as_posix() for path in out.rglob("[!.]*.*")}
    assert sorted(names - {"manifest.parquet"}) == [
        "fcnseg.json",
        "manifest.jsonl",
        "one.heatmap-0-red.jpg",
        "one.heatmap-2-blue.jpg",
        "one.overlay.jpg",
        "one.png",
        "report.html",
        "sub/two.heatmap-0-red.jpg",
        "sub/two.heatmap-2-blue.jpg",
        "sub/two.overlay.jpg",
        "sub/two.png",
    ]
    expected = fcnseg.load(tiny_model, "cpu").segment(photos / "one.png").class_map
    assert np.array_equal(masks.read_ids(out / "one.png"), expected)
    assert "2 of 2 images segmented" in done.stdout
    assert "red" in done.stdout
    assert "50.0%" in done.stdout
    assert "blue" not in done.stdout
    assert done.stderr == ""


def test_a_broken_image_is_named_the_others_are_done_and_the_exit_code_is_1(
    tiny_model: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    done = run(tiny_model, photos, tmp_path / "masks", "--device", "cpu")
    assert done.returncode == 1
    failure, summary = done.stderr.splitlines()
    assert failure.startswith(f"failed: {photos / 'broken.jpg'}: the JPEG image is damaged or cut short")
    assert summary.startswith("fcnseg: error: 1 of 3 images failed: ")
    assert "broken.jpg" in summary
    assert "2 of 3 images segmented" in done.stdout
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_images_is_not_waited_for(tiny_model: Path, photos: Path, tmp_path: Path) -> None:
    os.mkfifo(photos / "pipe.png")
    (photos / "list.txt").write_text("one.png\npipe.png\n/dev/zero\nsub/two.bmp\n")
    done = run(tiny_model, photos / "list.txt", tmp_path / "masks", "--device", "cpu")
    assert done.returncode == 1
    pipe, device, summary = done.stderr.splitlines()
    assert pipe == f"failed: image {photos / 'pipe.png'} is a pipe, a socket or a device; name a file"
    assert device == "failed: image /dev/zero is a pipe, a socket or a device; name a file"
    assert summary.startswith("fcnseg: error: 2 of 4 images failed: ")
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_frames_is_not_waited_for(tiny_model: Path, tmp_path: Path) -> None:
    for number in (0, 2):
        save(tmp_path / f"{number}.png", (64, 48))
    os.mkfifo(tmp_path / "1.png")
    done = run(tiny_model, tmp_path / "%d.png", tmp_path / "out.avi", "--device", "cpu")
    assert done.returncode == 1
    failure, summary = done.stderr.splitlines()
    assert failure == f"failed: frame 1: image {tmp_path / '1.png'} is a pipe, a socket or a device; name a file"
    assert summary.startswith("fcnseg: error: 1 of 3 frames failed")


@pytest.mark.parametrize("name", ["two\nlines", os.fsdecode(b"caf\xe9")])
def test_names_that_are_no_line_of_text_are_quoted(tiny_model: Path, tmp_path: Path, name: str) -> None:
    (folder := tmp_path / name).mkdir()
    Image.new("RGB", (30, 20), "red").save(folder / f"{name}.png")
    (folder / f"{name} broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    many = run(tiny_model, folder, tmp_path / f"{name} masks", "--device", "cpu")
    failure, summary = many.stderr.splitlines()
    assert failure.startswith(f"failed: {str(folder / f'{name} broken.jpg')!r}: ")
    assert repr(f"{name} broken.jpg") in summary
    assert f"masks: {str(tmp_path / f'{name} masks')!r}" in many.stdout
    one = run(tiny_model, folder / f"{name}.png", tmp_path / f"{name} mask.png", "--device", "cpu")
    assert (one.returncode, one.stderr) == (0, "")
    assert f"masks: {str(tmp_path / f'{name} mask.png')!r}" in one.stdout


def test_mistakes_exit_with_2_and_one_line(
    tiny_model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    mistakes = {
        "photos-that-are-not does not exist": (tiny_model, tmp_path / "photos-that-are-not", tmp_path / "out"),
        "no images in": (tiny_model, tmp_path / "empty", tmp_path / "out"),
        "nix.onnx does not exist": (tmp_path / "nix.onnx", photos, tmp_path / "out"),
        "did you mean green": (tiny_model, photos, tmp_path / "out", "--heatmap", "gren", "--device", "cpu"),
        "did you mean blue": (tiny_model, photos, tmp_path / "out", "--region-class", "blu", "--device", "cpu"),
        "'--threshold': 1.0 is not in the range": (tiny_model, photos, tmp_path / "out", "--threshold", "1"),
        "unknown device 'gpu'": (tiny_model, photos, tmp_path / "out", "--device", "gpu"),
        "Missing argument 'OUTPUT'; see 'fcnseg segment --help'": (tiny_model, photos),
    }
    for words, arguments in mistakes.items():
        monkeypatch.setattr(sys, "argv", ["fcnseg", "segment", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        assert ended.value.code == 2, words
        assert words in output.err
        assert output.err.startswith("fcnseg: error: ")
        assert len(output.err.splitlines()) == 1
        assert output.out == ""
    assert not (tmp_path / "out").exists()


def test_the_top_classes_of_an_image_are_drawn_and_ranked_by_probability(
    tiny_model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(tiny_model, photos / "one.png", out, "--top", "2", "--heatmap", "green", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in out.iterdir())
    assert names == ["one.heatmap-0-red.jpg", "one.heatmap-1-green.jpg", "one.png"]
    ranked = [line.split("│") for line in done.stdout.splitlines() if "1.000" in line]
    assert [(cells[1].strip(), cells[2].strip()) for cells in ranked] == [("1", "red"), ("2", "green")]


def test_the_top_classes_of_a_folder_are_counted_over_its_images(
    tiny_model: Path, photos: Path, tmp_path: Path
) -> None:
    image = np.full((9, 9, 3), (0, 0, 100), np.uint8)
    image[:, 5:] = (100, 0, 0)
    Image.fromarray(image).save(photos / "three.png")
    done = run(tiny_model, photos, tmp_path / "out", "--top", "2", "--device", "cpu")
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in done.stdout.splitlines() if line.count("│") == 5]
    ranked = {row[1]: (row[0], row[3]) for row in rows if row[2].startswith(("0.", "1."))}
    assert ranked == {"red": ("1", "3"), "green": ("2", "2"), "blue": ("3", "1")}


def test_regions_are_listed_beside_each_mask_and_boxed_in_the_overlay(
    tiny_model: Path, photos: Path, tmp_path: Path
) -> None:
    plain, boxed = tmp_path / "plain", tmp_path / "boxed"
    run(tiny_model, photos / "one.png", plain, "--overlay", "--device", "cpu")
    done = run(tiny_model, photos / "one.png", boxed, "--overlay", "--regions", "--device", "cpu")
    listed = json.loads((boxed / "one.regions.json").read_text())
    assert (listed["height"], listed["width"]) == (20, 30)
    assert [(region["class"]["name"], region["box"]) for region in listed["regions"]] == [
        ("red", {"top": 0, "left": 0, "height": 20, "width": 15}),
        ("green", {"top": 0, "left": 15, "height": 20, "width": 15}),
    ]
    assert "region of" in done.stdout
    assert (boxed / "one.png").read_bytes() == (plain / "one.png").read_bytes()
    assert (boxed / "one.overlay.jpg").read_bytes() != (plain / "one.overlay.jpg").read_bytes()


def test_more_regions_than_usual_can_be_had_or_fewer(tiny_model: Path, tmp_path: Path) -> None:
    """Counting what is in an image, one must get all of it."""
    dots = Image.new("RGB", (96, 96), "black")
    for top, left in itertools.product(range(8, 96, 8), repeat=2):
        dots.putpixel((left, top), (255, 0, 0))
    dots.save(tmp_path / "dots.png")
    for options, count in (((), 100), (("--max-regions", "1000"), 121), (("--max-regions", "7"), 7)):
        out = tmp_path / str(count)
        done = run(tiny_model, tmp_path / "dots.png", out, "--region-class", "red", *options, "--device", "cpu")
        assert done.returncode == 0, done.stderr
        assert len(json.loads((out / "dots.regions.json").read_text())["regions"]) == count


def test_the_report_can_be_left_out(tiny_model: Path, photos: Path, tmp_path: Path) -> None:
    done = run(tiny_model, photos, tmp_path / "out", "--no-report", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "one.png").exists()
    assert not (tmp_path / "out" / "report.html").exists()


def test_pixels_can_stay_as_they_are_stored(tiny_model: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png", exif=exif)
    for name, options, shape in (("up", (), (30, 20)), ("stored", ("--stored-orientation",), (20, 30))):
        done = run(tiny_model, tmp_path / "a.png", tmp_path / f"{name}.png", *options, "--device", "cpu")
        assert done.returncode == 0, done.stderr
        assert masks.read_ids(tmp_path / f"{name}.png").shape == shape


def test_masks_of_unknown_origin_are_replaced_on_request_alone(tiny_model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one.png").write_bytes(b"mine")
    refused = run(tiny_model, photos, tmp_path / "out", "--device", "cpu")
    assert refused.returncode == 2
    assert "no fcnseg.json says by which model" in refused.stderr
    assert (tmp_path / "out" / "one.png").read_bytes() == b"mine"
    done = run(tiny_model, photos, tmp_path / "out", "--overwrite", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert masks.read_ids(tmp_path / "out" / "one.png").shape == (20, 30)


def test_help_shows_defaults_and_an_example() -> None:
    text = " ".join(run("--help").stdout.split())
    assert "[default: auto]" in text
    assert "Example: fcnseg segment model.onnx photos/ masks/ --overlay" in text


def test_a_folder_of_frames_becomes_a_video_and_a_manifest(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for i in range(4):
        Image.new("RGB", (32, 24), (200, 50 * i, 0)).save(tmp_path / "frames" / f"{i}.png")
    done = run(tiny_model, tmp_path / "frames", tmp_path / "out.avi", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 frames segmented" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "out.manifest.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == [0, 1, 2, 3]
    again = run(tiny_model, tmp_path / "out.avi", tmp_path / "out.avi", "--device", "cpu")
    assert again.returncode == 2
    assert "would replace an input" in again.stderr
    second = run(tiny_model, tmp_path / "out.avi", tmp_path / "second.mp4", "--device", "cpu")
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "second.mp4").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    masks_of_it = run(tiny_model, tmp_path / "out.avi", tmp_path / "masks", "--device", "cpu")
    assert masks_of_it.returncode == 1
    assert "of a video, name an OUTPUT such as out.mp4" in masks_of_it.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("output", "option", "words"),
    [
        ("out.mp4", ("--regions",), "a video takes no --regions"),
        ("out.mp4", ("--format", "npy"), "a video takes no --format"),
        ("out.mp4", ("--skip-existing",), "a video takes no --overwrite/--skip-existing"),
        ("out.mp4", ("--server", "host:1"), "a video takes no --server"),
        ("out", ("--server", "localhost:1", "--tile", "64"), "--tile with --server, where the server decides that"),
        ("out", ("--server", "localhost:1", "--no-tuned"), "--tuned/--no-tuned with --server"),
        ("out", ("--threshold", "0.8"), "--threshold is for regions; add --regions, or leave it out"),
        ("out", ("--max-regions", "1000"), "--max-regions is for regions; add --regions, or leave it out"),
        ("out", ("--tls",), "--tls without a server; name one by --server"),
        ("out", ("--timeout", "5"), "--timeout without a server; name one by --server"),
        ("out", ("--in-flight", "2"), "--in-flight without a server; name one by --server"),
    ],
)
def test_an_option_that_means_nothing_here_is_refused(
    tiny_model: Path, photos: Path, tmp_path: Path, output: str, option: tuple[str, ...], words: str
) -> None:
    done = run(tiny_model, photos, tmp_path / output, "--device", "cpu", *option)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line
    assert not list(tmp_path.glob("out*"))


def test_a_single_mask_has_one_format(tiny_model: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 6)).save(photo)
    done = run(tiny_model, photo, tmp_path / "{mask}.tif", "--format", "npy", "--device", "cpu")
    assert done.returncode == 2
    assert "--format does not fit the suffix of OUTPUT; leave one of the two out" in done.stderr
    assert not (tmp_path / "{mask}.tif").exists()

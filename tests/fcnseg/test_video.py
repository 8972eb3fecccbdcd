import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fcnseg
from fcnseg import images, render
from fcnseg.errors import ImageError, UsageError
from fcnseg.frames import FrameSource, ImageFrames, is_pattern, is_video, open_frames
from fcnseg.images import ImageLimits
from fcnseg.segmenter import Segmenter
from fcnseg.video import CODECS, SegmentedFrame, manifest_path, segment_video

CODEC_ERROR = 12  # mean difference of levels that MPEG-4 and Motion JPEG leave in these pictures


def frame(index: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A red bar that moves over green, and a blue floor."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 1] = 180
    image[:, index % width : index % width + 16] = (220, 20, 20)
    image[height * 3 // 4 :] = (10, 20, 200)
    return image


def write_video(path: Path, count: int, fps: float = 10, size: tuple[int, int] = (48, 64)) -> Path:
    codec = cv2.VideoWriter.fourcc(*CODECS[path.suffix])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, fps, (size[1], size[0]))
    for index in range(count):
        writer.write(cv2.cvtColor(frame(index, *size), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[NDArray[np.uint8]], float]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    pictures = []
    while (answer := capture.read())[0]:
        pictures.append(cv2.cvtColor(answer[1], cv2.COLOR_BGR2RGB))
    return pictures, capture.get(cv2.CAP_PROP_FPS)


def write_images(folder: Path, count: int, size: tuple[int, int] = (48, 64)) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(frame(index, *size)).save(folder / f"f{index}.png")
    return folder


def rows(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in manifest_path(output).read_text(encoding="utf-8").splitlines()]


def run(segmenter: Segmenter, source: FrameSource, output: Path) -> list[SegmentedFrame]:
    return list(segment_video(segmenter, source, output))


@pytest.fixture(scope="module")
def segmenter(tiny_model: Path) -> Segmenter:
    return fcnseg.load(tiny_model, "cpu")


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_becomes_an_overlay_of_the_same_size_and_rate(
    segmenter: Segmenter, tmp_path: Path, suffix: str
) -> None:
    source = write_video(tmp_path / f"in{suffix}", 12)
    stored, _ = read_video(source)
    output = tmp_path / "new" / f"out{suffix}"
    frames = open_frames(source)
    assert frames.total == 12
    results = run(segmenter, frames, output)
    assert frames.notes == []
    pictures, fps = read_video(output)
    assert fps == pytest.approx(10)
    assert len(pictures) == len(results) == 12
    for result, row, image, picture in zip(results, rows(output), stored, pictures, strict=True):
        answer = segmenter.segment(image)
        expected = render.overlay(image, answer.class_map, answer.label_map)
        assert picture.shape == expected.shape
        assert np.abs(picture.astype(int) - expected).mean() < CODEC_ERROR
        assert result.classes == answer.classes
        assert row["classes"] == [
            {"id": a.info.id, "name": a.info.name, "pixels": a.pixels, "fraction": a.fraction} for a in answer.classes
        ]
        assert (row["frame"], row["height"], row["width"], row["error"]) == (result.frame, 48, 64, None)
        assert row["time_s"] == pytest.approx(result.frame / 10)
        assert sorted(row["timings_ms"]) == ["decode", "encode", "infer"]  # type: ignore[call-overload]
    assert sorted(path.name for path in output.parent.iterdir()) == sorted(["out.manifest.jsonl", f"out{suffix}"])


@pytest.mark.parametrize("fps", [23.976, 59.94, 211.222, 100000 / 473, 999.9])
def test_any_rate_can_be_written(segmenter: Segmenter, tmp_path: Path, fps: float) -> None:
    """MPEG-4 has 16 bits for a rate's numerator, and slow-motion cameras tell rates that it has no place for."""
    frames = open_frames(write_images(tmp_path / "frames", 3), fps=fps)
    run(segmenter, frames, tmp_path / "out.mp4")
    pictures, written = read_video(tmp_path / "out.mp4")
    assert len(pictures) == 3
    assert written == pytest.approx(fps, rel=1e-3)


def test_two_frames_of_one_number_are_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "frames", 2)
    (folder / "f01.png").write_bytes((folder / "f1.png").read_bytes())
    with pytest.raises(UsageError, match=r"f01\.png and f1\.png in .* are both frame 1; move one away"):
        open_frames(folder / "f%d.png")


def test_images_become_a_video_in_the_order_of_their_numbers(segmenter: Segmenter, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "frames", 12)
    (folder / "notes.txt").write_text("not a frame")
    for source in (folder, folder / "f%d.png"):
        results = run(segmenter, open_frames(source, fps=5), tmp_path / "out.mp4")
        assert [result.time_s for result in results] == [index / 5 for index in range(12)]
        assert [r.classes for r in results] == [segmenter.segment(frame(index)).classes for index in range(12)]
    pictures, fps = read_video(tmp_path / "out.mp4")
    assert (len(pictures), fps) == (12, 5)


def test_a_pattern_takes_the_numbers_that_there_are(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "frames", 3)
    for index in (7, 90, 100000):
        Image.fromarray(frame(index)).save(folder / f"x_{index:05d}.png")
    assert is_pattern(folder / "x_%05d.png")
    assert not is_pattern(folder)
    frames = open_frames(folder / "x_%05d.png")
    assert isinstance(frames, ImageFrames)
    assert [path.name for path in frames._paths] == ["x_00007.png", "x_00090.png", "x_100000.png"]
    with pytest.raises(UsageError, match=r"no files in .*frames are named as in y_%05d\.png"):
        open_frames(folder / "y_%05d.png")


def test_an_odd_side_is_completed_by_its_last_pixels(segmenter: Segmenter, tmp_path: Path) -> None:
    (result,) = run(segmenter, open_frames(write_images(tmp_path / "in", 1, (31, 45))), tmp_path / "out.avi")
    assert (result.height, result.width) == (31, 45)
    (picture,), _ = read_video(tmp_path / "out.avi")
    assert picture.shape == (32, 46, 3)
    answer = segmenter.segment(frame(0, 31, 45))
    expected = render.overlay(frame(0, 31, 45), answer.class_map, answer.label_map)
    assert np.abs(picture[:31, :45].astype(int) - expected).mean() < CODEC_ERROR


def test_a_frame_that_cannot_be_read_is_reported_and_the_others_go_on(segmenter: Segmenter, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "frames", 5)
    (folder / "f2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    results = run(segmenter, open_frames(folder), tmp_path / "out.mp4")
    assert [result.error is None for result in results] == [True, True, False, True, True]
    assert "f2.png: the PNG image is damaged" in str(rows(tmp_path / "out.mp4")[2]["error"])
    assert len(read_video(tmp_path / "out.mp4")[0]) == 5


def test_a_model_that_fails_leaves_the_frames_without_a_tint(tmp_path: Path) -> None:
    from tests.tiny_model import write_tiny_model

    broken = fcnseg.load(write_tiny_model(tmp_path / "broken.onnx", fails_on_magenta=True), "cpu")
    source = write_images(tmp_path / "frames", 3)
    for path in (tmp_path / "frames").iterdir():
        pixels = images.read(path)
        pixels[0, 0] = (255, 0, 255)
        path.write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    results = run(broken, open_frames(source), tmp_path / "out.mp4")
    assert all(result.error and "\n" not in result.error and not result.classes for result in results)
    pictures, _ = read_video(tmp_path / "out.mp4")
    assert np.abs(pictures[2].astype(int) - frame(2)).mean() < CODEC_ERROR


def test_a_truncated_video_gives_the_frames_that_there_are(segmenter: Segmenter, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.avi", 40)
    (tmp_path / "cut.avi").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    frames = open_frames(tmp_path / "cut.avi")
    results = run(segmenter, frames, tmp_path / "out.mp4")
    assert 0 < len(results) < 40
    assert len(rows(tmp_path / "out.mp4")) == len(results)
    assert f"ends after {len(results)} of the {frames.total} frames" in frames.notes[0]


def test_what_is_no_source_of_frames_is_told_in_one_line(segmenter: Segmenter, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", 10)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:600])
    (tmp_path / "text.mp4").write_text("#EXTM3U\n#EXTINF:1,\n" + str(whole) + "\n")
    (tmp_path / "none.mp4").write_bytes(b"")
    for name in ("cut.mp4", "text.mp4", "none.mp4"):
        with pytest.raises(ImageError, match=rf"video .*{name} (cannot be opened|has no frame).*") as raised:
            run(segmenter, open_frames(tmp_path / name), tmp_path / "out.mp4")
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="does not exist; name a video"):
        open_frames(tmp_path / "missing.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no images in"):
        open_frames(tmp_path / "empty")
    with pytest.raises(ImageError, match="64 x 48 = 3072 pixels, more than the limit of 3000"):
        open_frames(whole, limits=ImageLimits(max_pixels=3000))
    assert is_video(Path("A.MP4"))
    assert not is_video(Path("photo.jpg"))


def test_a_frame_of_another_size_is_named_and_nothing_is_left(segmenter: Segmenter, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "frames", 12)
    Image.fromarray(frame(0, 40, 60)).save(folder / "f10.png")
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"f10\.png has 60 x 40 pixels, but the first, f0\.png, has 64 x 48"):
        run(segmenter, open_frames(folder), out / "clip.mp4")
    assert list(out.iterdir()) == []


def test_an_output_that_is_no_video_is_refused_before_any_work(segmenter: Segmenter, tmp_path: Path) -> None:
    frames = open_frames(write_images(tmp_path / "frames", 1))
    with pytest.raises(UsageError, match=r"out\.webm cannot be written as a video; name a file ending in \.mp4"):
        run(segmenter, frames, tmp_path / "out.webm")


@pytest.mark.parametrize("opacity", [-0.1, 50, float("nan")])
def test_an_opacity_that_is_no_share_is_refused(segmenter: Segmenter, tmp_path: Path, opacity: float) -> None:
    frames = open_frames(write_images(tmp_path / "in", 2))
    with pytest.raises(UsageError, match="opacity is .*; it must be from 0 to 1"):
        next(segment_video(segmenter, frames, tmp_path / "out.avi", opacity=opacity))
    assert not (tmp_path / "out.avi").exists()


def test_results_that_are_not_taken_to_the_end_leave_nothing_and_keep_what_was_there(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "clip.mp4").write_bytes(b"from yesterday")
    results = segment_video(segmenter, open_frames(write_video(tmp_path / "in.mp4", 30)), out / "clip.mp4")
    assert isinstance(results, Iterator)
    assert next(results).frame == 0
    assert len(list(out.iterdir())) == 3
    results.close()  # type: ignore[attr-defined]
    assert [path.name for path in out.iterdir()] == ["clip.mp4"]
    assert (out / "clip.mp4").read_bytes() == b"from yesterday"


def test_memory_does_not_grow_with_the_video(segmenter: Segmenter, tmp_path: Path) -> None:
    peaks = []
    for count in (30, 300):
        frames = open_frames(write_video(tmp_path / f"{count}.avi", count, size=(240, 320)))
        tracemalloc.start()
        done = sum(1 for _ in segment_video(segmenter, frames, tmp_path / "out.avi"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done == count
    # A frame and its overlay are 0.5 MB; numpy and OpenCV's arrays are traced.
    assert peaks[1] < peaks[0] + 2 * 2**20


def test_a_disk_that_is_full_is_told(tiny_model: Path, tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.avi", 60)
    script = (
        "import resource, signal, sys, pathlib, fcnseg\nfrom fcnseg.frames import open_frames\n"
        "from fcnseg.video import segment_video\n"
        "segmenter = fcnseg.load(sys.argv[1], 'cpu')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "list(segment_video(segmenter, open_frames(pathlib.Path(sys.argv[2])), pathlib.Path(sys.argv[3])))\n"
    )
    out = tmp_path / "out"

    done = subprocess.run(
        [sys.executable, "-c", script, tiny_model, source, out / "clip.avi"],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 1
    assert "OSError" in done.stderr
    assert list(out.iterdir()) == []

"""A job that was ended, by whatever, goes on where it was."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fcnseg
from fcnseg.errors import UsageError
from fcnseg.folder import FolderOptions, MaskFormat, segment_folder
from fcnseg.folder.job import JobFile, claim
from fcnseg.segmenter import Segmenter
from tests.disks import small_disk
from tests.image_folders import save, touch, write_noise
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def segmenter(tiny_model: Path) -> Segmenter:
    return fcnseg.load(tiny_model, "cpu", threads=1)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the masks and pictures of a job, and what its manifest says but for the times."""
    found = {path.name: path.read_bytes() for path in folder.glob("[0-9]*")}
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_bytes().splitlines()]
    for row in rows:
        del row["timings_ms"]
    return {**found, "manifest": json.dumps(rows).encode()}


def start(model: Path, source: Path, output: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "fcnseg", "segment", model, source, output, "--overlay", "--device", "cpu"]
    command += options
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done_count(output: Path) -> int:
    return len(list(output.glob("[0-9]*.png")))


def test_a_job_killed_at_any_moment_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx", work_rounds=30)
    names = write_noise(tmp_path / "in", 60)
    list(segment_folder(fcnseg.load(model, "cpu"), tmp_path / "in", tmp_path / "whole", FolderOptions(overlay=True)))
    moments = random.Random(0)
    kept: dict[str, int] = {}
    for share in (0.2, 0.6):
        process = start(model, tmp_path / "in", tmp_path / "out")
        wait_until(lambda share=share: done_count(tmp_path / "out") >= share * len(names))
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        process.communicate()
        for name, stamp in kept.items():
            assert (tmp_path / "out" / name).stat().st_mtime_ns == stamp, "what was done is not done again"
        rows = (tmp_path / "out" / "manifest.jsonl").read_bytes().splitlines(keepends=True)
        masks = [json.loads(line)["mask"] for line in rows if line.endswith(b"\n")]
        kept = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in masks}
    process = start(model, tmp_path / "in", tmp_path / "out")
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert f"{len(kept)} were done before" in stdout
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_half_files_of_a_killed_run_are_cleared_away(segmenter: Segmenter, tmp_path: Path) -> None:
    touch(tmp_path / "in", "a/a.png", "sub/b.png")
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    code = (
        "import os, pathlib, sys; from fcnseg.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as half: half.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    for name in ("a/a.png", "sub/b.overlay.jpg", "report.html"):
        subprocess.run([sys.executable, "-c", code, tmp_path / "out" / name], check=False)
    (tmp_path / "out" / ".keep.part").write_text("not ours")
    assert len(list((tmp_path / "out").rglob(".*.part?*"))) == 3
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    assert not list((tmp_path / "out").rglob(".*.part?*"))
    assert (tmp_path / "out" / ".keep.part").exists()


def test_an_interrupt_finishes_what_is_under_way(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx", work_rounds=600)
    write_noise(tmp_path / "in", 200)
    process = start(model, tmp_path / "in", tmp_path / "out")
    wait_until(lambda: done_count(tmp_path / "out") >= 20)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "the same command continues from here" in stderr
    rows = (tmp_path / "out" / "manifest.jsonl").read_bytes().splitlines()
    assert {json.loads(line)["mask"] for line in rows} == {p.name for p in (tmp_path / "out").glob("[0-9]*.png")}
    assert 20 <= len(rows) < 200


def test_an_interrupt_leaves_an_image_in_tiles_for_the_next_time(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx", work_rounds=600)
    save(tmp_path / "in" / "0.png", (30, 30))
    save(tmp_path / "in" / "1.png", (900, 900))
    process = start(model, tmp_path / "in", tmp_path / "out", "--tile", "64")
    wait_until(lambda: done_count(tmp_path / "out") >= 1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "the same command continues from here" in stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["0.png"]
    rows = (tmp_path / "out" / "manifest.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["mask"] for line in rows] == ["0.png"]


def test_a_second_run_does_nothing_and_leaves_everything_as_it_is(segmenter: Segmenter, tmp_path: Path) -> None:
    write_noise(tmp_path / "in", 9)
    options = FolderOptions(overlay=True, confidence=True, top=1)
    first = list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[0-9]*")}
    second = list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options))
    assert all(result.skipped for result in second)
    assert [(r.image, r.row, r.mask, r.pictures) for r in first] == [
        (r.image, r.row, r.mask, r.pictures) for r in second
    ]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[0-9]*")} == before


def test_what_is_missing_new_changed_or_failed_is_done_again(segmenter: Segmenter, tmp_path: Path) -> None:
    write_noise(tmp_path / "in", 9)
    (tmp_path / "in" / "004.png").write_bytes(b"broken")
    options = FolderOptions(overlay=True)
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options))
    (tmp_path / "out" / "001.png").unlink()
    (tmp_path / "out" / "002.overlay.jpg").unlink()
    touch(tmp_path / "in", "009.png")
    newer, other = tmp_path / "in" / "003.png", tmp_path / "in" / "007.png"
    later, before = time.time_ns() + 10**10, other.stat()
    os.utime(newer, ns=(later, later))
    other.write_bytes((tmp_path / "in" / "008.png").read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert other.stat().st_size != before.st_size
    (tmp_path / "in" / "005.png").unlink()
    results = list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options))
    assert [r.image.stem for r in results if not r.skipped] == ["001", "002", "003", "004", "007", "009"]
    rows = [json.loads(line)["image"] for line in (tmp_path / "out" / "manifest.jsonl").read_bytes().splitlines()]
    assert rows == [f"00{i}.png" for i in (0, 1, 2, 3, 4, 6, 7, 8, 9)]


def test_another_image_of_the_same_name_is_another_image(segmenter: Segmenter, tmp_path: Path) -> None:
    """Two days' photographs are often called the same, and the second day's may be older than the first day's masks."""
    touch(tmp_path / "monday", "1.png", "2.png")
    write_noise(tmp_path / "tuesday", 3)
    for i in (1, 2):
        (tmp_path / "tuesday" / f"00{i}.png").rename(tmp_path / "tuesday" / f"{i}.png")
    os.utime(tmp_path / "tuesday" / "1.png", (0, 0))
    list(segment_folder(segmenter, tmp_path / "monday", tmp_path / "out"))
    results = list(segment_folder(segmenter, tmp_path / "tuesday", tmp_path / "out"))
    assert not any(result.skipped for result in results)
    assert all(r.skipped for r in segment_folder(segmenter, tmp_path / "tuesday", tmp_path / "out"))


def test_a_job_that_begins_anew_drops_the_old_rows_before_it_is_named(segmenter: Segmenter, tmp_path: Path) -> None:
    """Else a program that is killed in between leaves old masks that pass for the new model's."""
    write_noise(tmp_path / "in", 3)
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    job = JobFile({"sha256": "another"}, {}, segmenter.info.label_map)
    assert not claim(tmp_path / "out", job, overwrite=True)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_masks_of_another_model_or_of_other_options_are_not_mixed_with_ours(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    write_noise(tmp_path / "in", 3)
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    before = contents(tmp_path / "out")
    other = fcnseg.load(write_tiny_model(tmp_path / "m.onnx", class_names=("a", "b", "c")), "cpu")
    with pytest.raises(UsageError, match="were made by another model"):
        list(segment_folder(other, tmp_path / "in", tmp_path / "out"))
    with pytest.raises(UsageError, match=r"were made with other options \(overlay was false and is true\)"):
        list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", FolderOptions(overlay=True)))
    assert contents(tmp_path / "out") == before
    results = list(segment_folder(other, tmp_path / "in", tmp_path / "out", FolderOptions(overwrite=True)))
    assert not any(result.skipped for result in results)
    assert {area["name"] for result in results for area in result.row.classes} <= {"a", "b", "c"}


def test_a_single_image_takes_no_mask_of_a_job(segmenter: Segmenter, tmp_path: Path) -> None:
    write_noise(tmp_path / "in", 3)
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    before = contents(tmp_path / "out")
    other = fcnseg.load(write_tiny_model(tmp_path / "m.onnx", class_names=("a", "b", "c")), "cpu")
    for options in (FolderOptions(), FolderOptions(overwrite=True)):
        with pytest.raises(UsageError, match=r"001\.png was made with others of its folder"):
            list(segment_folder(other, tmp_path / "in" / "001.png", tmp_path / "out", options))
    assert contents(tmp_path / "out") == before
    list(segment_folder(other, tmp_path / "in" / "001.png", tmp_path / "out" / "once.png"))
    assert all(result.skipped for result in segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))


def test_a_manifest_that_ends_in_half_a_line_is_read_up_to_there(segmenter: Segmenter, tmp_path: Path) -> None:
    write_noise(tmp_path / "in", 5)
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    manifest = tmp_path / "out" / "manifest.jsonl"
    whole = contents(tmp_path / "out")
    manifest.write_bytes(manifest.read_bytes()[:-40])
    results = list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    assert [result.skipped for result in results] == [True] * 4 + [False]
    assert contents(tmp_path / "out") == whole


def test_a_full_disk_ends_the_job_with_one_line_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx")
    write_noise(tmp_path / "in", 30)
    disk, later = tmp_path / "disk", tmp_path / "later"
    later.mkdir()
    for path in sorted((tmp_path / "in").iterdir())[2:]:
        path.rename(later / path.name)
    with small_disk(disk, "100k"):
        process = start(model, tmp_path / "in", disk / "out")
        _, stderr = process.communicate(timeout=180)
        assert process.returncode == 0, stderr
        for path in later.iterdir():
            path.rename(tmp_path / "in" / path.name)
        process = start(model, tmp_path / "in", disk / "out")
        _, stderr = process.communicate(timeout=180)
        assert process.returncode == 1
        assert stderr.splitlines()[-1].startswith("fcnseg: error: ")
        line = stderr.splitlines()[-1]
        assert re.fullmatch(
            r".*/disk/out/[^./][^/]*: No space left on device; make room, and run the command again", line
        )
        assert not list((disk / "out").glob(".*.part*"))
        for mask in (disk / "out").glob("[0-9]*.png"):
            fcnseg.masks.read_ids(mask)
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        process = start(model, tmp_path / "in", disk / "out")
        stdout, stderr = process.communicate(timeout=180)
        assert process.returncode == 0, stderr
        assert "were done before" in stdout
        assert done_count(disk / "out") == 30


def test_a_manifest_that_cannot_be_written_ends_the_job_and_its_threads(segmenter: Segmenter, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    write_noise(tmp_path / "in", 8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))  # some rows, and each other file
    try:
        with pytest.raises(OSError, match=r"File too large: '.*manifest\.jsonl'"):
            list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fcnseg-")]
    results = list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    assert 0 < sum(result.skipped for result in results) < 8


def test_what_sums_up_an_earlier_job_does_not_stay_beside_one_that_takes_its_place(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    write_noise(tmp_path / "in", 2)
    earlier = FolderOptions(MaskFormat.COCO, overwrite=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "coco.json").write_text("no job's")
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    assert (tmp_path / "out" / "coco.json").read_text() == "no job's"
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", earlier))
    assert (tmp_path / "out" / "report.html").is_file()
    later = FolderOptions(overwrite=True, report=False)
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", later))
    assert not (tmp_path / "out" / "coco.json").exists()
    assert not (tmp_path / "out" / "report.html").exists()


def test_what_an_earlier_job_wrote_of_an_image_is_gone_when_one_that_takes_its_place_is_done(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    write_noise(tmp_path / "in", 3)
    output = tmp_path / "out"
    list(segment_folder(segmenter, tmp_path / "in", output, FolderOptions(overlay=True)))
    (tmp_path / "in" / "000.png").unlink()
    (tmp_path / "in" / "001.png").write_bytes(b"no image any more")
    list(segment_folder(segmenter, tmp_path / "in", output, FolderOptions(MaskFormat.TIFF, overwrite=True)))
    of_no_image_of_the_new_job = {"000.png", "000.overlay.jpg"}
    found = {path.name for path in output.glob("[!.]*")} - {"manifest.parquet"}
    assert found == {"002.tif", "fcnseg.json", "manifest.jsonl", "report.html"} | of_no_image_of_the_new_job


def test_a_job_that_is_ended_early_has_removed_nothing_of_the_one_whose_place_it_takes(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    write_noise(tmp_path / "in", 4)
    output, masks = tmp_path / "out", [f"00{i}.png" for i in range(4)]
    list(segment_folder(segmenter, tmp_path / "in", output))
    for mask_format in (MaskFormat.TIFF, MaskFormat.NPY):  # one after the other is ended
        job = segment_folder(segmenter, tmp_path / "in", output, FolderOptions(mask_format, overwrite=True, workers=1))
        next(job)
        job.close()
        assert all((output / mask).is_file() for mask in masks)
    list(segment_folder(segmenter, tmp_path / "in", output, FolderOptions(MaskFormat.NPY)))
    assert sorted(path.name for path in output.glob("*00*")) == [f"00{i}.npy" for i in range(4)]
    assert not list(output.glob(".manifest*"))


def test_an_earlier_jobs_manifest_removes_nothing_elsewhere(segmenter: Segmenter, tmp_path: Path) -> None:
    write_noise(tmp_path / "in", 1)
    (tmp_path / "precious").write_text("mine")
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out"))
    manifest = tmp_path / "out" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"mask": "000.png"', '"mask": "../precious"'))
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", FolderOptions(overwrite=True)))
    assert (tmp_path / "precious").read_text() == "mine"

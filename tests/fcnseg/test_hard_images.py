"""Image files as strangers send them, through the command that works without a server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fcnseg import images, masks
from fcnseg.errors import ImageError

SUFFIXES_OF_OTHERS = {".ico", ".im", ".pgm", ".psd"}
MOST_RESIDENT = 2**30
# The system's own figure for a child that has ended begins with what its parent held when it was started.
MEASURED = """
import atexit, pathlib, sys
from fcnseg.cli import main
from tests.process_memory import peak
atexit.register(lambda path: path.write_text(str(peak())), pathlib.Path(sys.argv.pop(1)))
main()
"""


def test_every_file_gets_a_mask_of_its_size_or_one_line(tiny_model: Path, shared_data: Path, tmp_path: Path) -> None:
    folder, out = shared_data / "hard_images", tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        MEASURED,
        str(tmp_path / "peak"),
        "segment",
        str(tiny_model),
        str(folder),
        str(out),
    ]
    with (tmp_path / "log").open("wb") as log:
        assert subprocess.run([*command, "--device", "cpu"], stdout=log, stderr=log, check=False).returncode == 1
    assert int((tmp_path / "peak").read_text()) < MOST_RESIDENT
    failed = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("failed: ")]
    refused = 0
    for entry in json.loads((folder / "manifest.json").read_text()):
        path = folder / entry["file"]
        lines = [line for line in failed if str(path) in line]
        if path.suffix in SUFFIXES_OF_OTHERS:
            continue
        if entry["decode"] == "ok":
            assert lines == []
            names = {f"{path.stem}.png", f"{path.name}.png"}
            (mask,) = (file for file in out.iterdir() if file.name in names)
            assert masks.read_ids(mask).shape == images.read(path).shape[:2]
        else:
            assert len(lines) == 1, entry["file"]
            refused += 1
    assert len(failed) == refused > 0


def test_files_of_other_formats_are_refused_in_one_line(shared_data: Path) -> None:
    others = [path for path in (shared_data / "hard_images").iterdir() if path.suffix in SUFFIXES_OF_OTHERS]
    assert {path.suffix for path in others} == SUFFIXES_OF_OTHERS
    for path in others:
        with pytest.raises(ImageError, match="use JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF") as raised:
            images.read(path)
        assert str(raised.value).isprintable()

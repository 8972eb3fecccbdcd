"""A model is run before it is used, and what onnxruntime records of that needs room on a disk."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fcnseg.engine import Engine
from fcnseg.errors import ModelFileError
from tests.disks import small_disk
from tests.image_folders import save


def test_a_model_is_not_opened_where_no_temporary_folder_can_be_made(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing"
    monkeypatch.setattr(tempfile, "tempdir", str(missing))
    with pytest.raises(ModelFileError, match=r"cannot be tried before use: no temporary folder.*set TMPDIR") as raised:
        Engine(tiny_model, "cpu")
    assert str(tiny_model) in str(raised.value)
    assert str(missing) in str(raised.value)


def test_a_full_disk_for_temporary_files_ends_a_command_with_one_line(tiny_model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    photo = save(tmp_path / "photo.png")
    command = [sys.executable, "-m", "fcnseg", "segment", tiny_model, photo, tmp_path / "out", "--device", "cpu"]
    with small_disk(disk, "16k"):
        environment = {**os.environ, "TMPDIR": str(disk)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
        assert list(disk.glob("fcnseg-*")) == []
    assert done.returncode == ModelFileError.exit_code
    assert done.stderr.splitlines()[-1].endswith(
        f"{tiny_model} cannot be tried before use: the record of its runs could not be written to {disk};"
        " make room there, or set TMPDIR to a disk that has it"
    )

"""All benchmarks by one command."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def run_all(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("run_all")


def test_figures_of_this_commit_by_the_default_command_are_not_measured_again(
    run_all: ModuleType, tmp_path: Path
) -> None:
    kept = json.loads((BENCHMARKS / "results" / "tiling.json").read_text())
    assert not run_all.is_measured("tiling", tmp_path, "abc1234")
    for commit, options, now, measured in (
        ("abc1234", "", "abc1234", True),
        ("abc1234", "", "def5678", False),
        ("abc1234", " --rounds 1", "abc1234", False),
        ("abc1234 with changes", "", "abc1234 with changes", False),
        ("", "", "", False),
    ):
        report = kept | {"commit": commit, "command": f"python benchmarks/tiling.py{options}"}
        (tmp_path / "tiling.json").write_text(json.dumps(report))
        assert run_all.is_measured("tiling", tmp_path, now) is measured
    (tmp_path / "tiling.json").write_text("{}")
    assert not run_all.is_measured("tiling", tmp_path, "abc1234")


def test_every_benchmark_is_in_the_catalogue_and_has_a_file(run_all: ModuleType) -> None:
    named = {name for name in run_all.BENCHMARKS if (BENCHMARKS / f"{name}.py").exists()}
    reporting = {path.stem for path in BENCHMARKS.glob("*.py") if "report = Report(" in path.read_text()}
    assert named == set(run_all.BENCHMARKS)
    assert reporting | {"gpu"} == named


@pytest.mark.slow
def test_one_that_fails_is_named_at_the_end_and_the_others_go_on(run_all: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "run_all.py"), "--quick", "serving_load", "tiling"]
    without_h2load = {**os.environ, "PATH": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=without_h2load, timeout=600)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("failed: serving_load.py; ")
    assert "== tiling.py ended, " in result.stdout
    assert f"1 of {len(run_all.BENCHMARKS)} benchmarks" in result.stdout

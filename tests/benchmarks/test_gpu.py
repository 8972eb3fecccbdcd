"""The benchmark of GPUs runs, as far as can be seen without one."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.export import export

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "gpu.py"
SECTIONS = {"export small", "ceiling", "small", "server", "shapes", "placement", "compile small"}


@pytest.mark.slow
def test_every_section_measures_something_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--budget", "1100", "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["section"] for row in rows if row["value"]} == SECTIONS
    failed = {(row["section"], row["way"]) for row in rows if row["value"] is None}
    exports_half = "precision" in inspect.signature(export).parameters
    assert failed == (set() if exports_half else {("export small", "fp16")})
    assert (tmp_path / "gpu.md").read_text().count("\n| ") > len(rows)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith(
        "torch sees no CUDA device for cuda:0; use --device cpu --quick to try the script"
    )
    assert list(tmp_path.iterdir()) == []

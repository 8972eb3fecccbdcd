"""The benchmark of GPUs runs, as far as can be seen without one."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "gpu.py"
QUICK = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick"]
EXPORTS = {"export small fp16", "export small fp32"}
COMPILES = {"compile small 0", "compile small 1"}
SECTIONS = EXPORTS | COMPILES | {"ceiling", "server", "small", "placement", "shapes", "compiled small", "ceiling after"}


def measured(folder: Path, budget_s: int, timeout_s: int, *options: str) -> tuple[dict[str, Any], str]:
    """Return the table that a quick run on the CPU keeps in a folder as gpu.json, and what it prints."""
    file = folder / "gpu.json"
    command = [*QUICK, "--budget", str(budget_s), "--json", str(file), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert result.returncode == 0, result.stderr
    (table,) = json.loads(file.read_text())["tables"]
    return table, result.stdout


@pytest.mark.slow
def test_every_section_measures_something_on_the_cpu(tmp_path: Path) -> None:
    table, _ = measured(tmp_path, 1100, 1200)
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert {row["section"] for row in rows if row["measured"]} == SECTIONS
    assert [row for row in rows if row["measured"] is None] == []
    assert {row["section"] for row in rows if row["of the ceiling"]} == {"small", "compiled small"}
    ratios = {row["way"]: row["over the first's"] for row in rows if row["section"] == "small"}
    alone = {way for way, ratio in ratios.items() if ratio is None}
    assert alone == {"fp32, on the device, channels last", "fp32, engine"}  # the first of either turns
    peers = {"PyTorch on the same module", "PyTorch as users write it"}
    assert {row["way"].split(", ")[1] for row in rows if "PyTorch" in row["way"]} == peers
    page = [sys.executable, str(SCRIPT.parent / "page.py"), "--results", str(tmp_path), "--docs", str(tmp_path)]
    subprocess.run(page, check=True, timeout=120)
    assert "## How fast is the model on a GPU" in (tmp_path / "benchmarks.md").read_text()


def test_what_does_not_fit_into_the_time_is_left_out_and_told(tmp_path: Path) -> None:
    table, told = measured(tmp_path, 80, timeout_s=300)
    assert {row[0] for row in table["rows"]} == SECTIONS
    assert all(row[-1].startswith("left out: ") and row[-1].endswith(", and it may take 180") for row in table["rows"])
    assert all(f"- {section}: 0 measured, 1 not\n" in told for section in SECTIONS)


@pytest.mark.slow
def test_only_the_sections_that_are_asked_for_are_run(tmp_path: Path) -> None:
    table, _ = measured(tmp_path, 1100, 1200, "--sections", "settings")
    assert {row[0] for row in table["rows"]} == EXPORTS | {"settings"}
    assert all(row[3] is not None for row in table["rows"])


def test_rows_are_kept_as_they_come_and_told_where_it_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [*QUICK, "--files", str(tmp_path), "--json", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline().split(" | ")[0] not in {"| ceiling", ""}:
            pass
        try:
            wait_until(file.exists)  # kept before the next row comes
        finally:
            process.send_signal(signal.SIGTERM)
            rest, errors = process.communicate(timeout=180)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "ended by SIGTERM"
    assert "In short:\n- ceiling: 1 measured\n  matrix product: " in rest
    (table,) = json.loads(file.read_text())["tables"]
    assert table["rows"][0][0] == "ceiling"


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    command = [sys.executable, str(SCRIPT), "--json", str(tmp_path / "gpu.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith(
        "torch sees no CUDA device for cuda:0; use --device cpu --quick to try the script"
    )
    assert list(tmp_path.iterdir()) == []

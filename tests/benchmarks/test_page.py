"""The page of benchmarks: what it shows, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
RATE = {"median": 20.5, "low": 19.5, "high": 23.75, "values": [19.5, 20.5, 23.75]}
ONCE = {"median": 8.25, "low": 8.25, "high": 8.25, "values": [8.25]}
MACHINE = {"processor": "abacus", "cores": 3, "memory_gib": 8.0, "load": 0.5, "gpu": None}


def folder_report() -> dict[str, Any]:
    rows = [["small", "folder", RATE, RATE, RATE, RATE], ["small", "server", ONCE, RATE, RATE, RATE]]
    columns = ["net", "job", "session.run, ms", "T / (T + C)", "images/s", "ratio"]
    return {
        "benchmark": "folder",
        "question": "What does a folder cost?",
        "command": "python benchmarks/folder.py speed --rounds 3",
        "date": "2001-02-03",
        "commit": "abcdef0",
        "machine": MACHINE,
        "versions": {"python": "9.8.7"},
        "tables": [{"name": "speed", "title": "Jobs", "columns": columns, "rows": rows, "note": "Ratios, noted."}],
    }


def make_page(results: Path, docs: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, ROOT / "benchmarks" / "page.py", "--results", results, "--docs", docs]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_page_has_the_figures_their_picture_and_where_they_are_from_and_names_what_is_missing(
    tmp_path: Path,
) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    results.mkdir()
    (results / "folder.json").write_text(json.dumps(folder_report()))
    assert make_page(results, docs).returncode == 0
    text = (docs / "benchmarks.md").read_text()
    for told in (
        "## What does a folder cost?",
        "    python benchmarks/folder.py speed --rounds 3",
        "3 cores of abacus, 8 GiB, load 0.5 at the start; python 9.8.7; commit abcdef0, 2001-02-03.",
        "| small | folder | 20.5 (19.5 to 23.8) |",
        "| small | server | 8.25 (once) |",
        "![Jobs](images/benchmarks-folder-speed.svg)",
        "Ratios, noted.",
    ):
        assert told in text
    (missing,) = [line for line in text.splitlines() if line.startswith("Not kept as JSON: ")]
    assert "serving_load.py (needs h2load)" in missing
    assert "folder.py" not in missing


def test_what_is_no_report_is_refused_in_one_line(tmp_path: Path) -> None:
    report = folder_report()
    report["tables"][0]["rows"][0].pop()
    for name, text in {"ragged": json.dumps(report), "cut": '{"benchmark": "fo', "other": "[1]"}.items():
        results = tmp_path / name
        results.mkdir()
        (results / "folder.json").write_text(text)
        answer = make_page(results, tmp_path / "docs")
        assert answer.returncode == 1
        (line,) = answer.stderr.splitlines()
        assert line.startswith(f"{results / 'folder.json'} is not a benchmark's report (")
        assert line.endswith("; run its benchmark again")
    assert not (tmp_path / "docs" / "benchmarks.md").exists()


def test_a_report_that_the_page_has_no_place_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stranger.json").write_text(json.dumps(folder_report()))
    answer = make_page(tmp_path, tmp_path / "docs")
    assert answer.returncode == 1
    assert "stranger" in answer.stderr


def test_the_page_says_of_the_tails_that_their_picture_is_noise(tmp_path: Path) -> None:
    (tmp_path / "tail.json").write_text(json.dumps(folder_report() | {"benchmark": "tail"}))
    assert make_page(tmp_path, tmp_path).returncode == 0
    assert "Without `--image` the picture is noise" in (tmp_path / "benchmarks.md").read_text()

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
    (missing,) = [line for line in text.splitlines() if line.startswith("Without figures here: ")]
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


def spread(*values: float) -> dict[str, Any]:
    low, median, high = sorted(values)
    return {"median": median, "low": low, "high": high, "values": list(values)}


def page_of(benchmark: str, table: dict[str, Any], folder: Path) -> str:
    report = folder_report() | {"benchmark": benchmark, "tables": [{"title": "Figures", "note": "", **table}]}
    (folder / f"{benchmark}.json").write_text(json.dumps(report))
    assert make_page(folder, folder).returncode == 0
    return (folder / "benchmarks.md").read_text()


def test_what_was_asked_for_is_told_as_reached_or_missed(tmp_path: Path) -> None:
    rows = [
        ["always", spread(1.5, 1.75, 2)],
        ["usually", spread(1.25, 1.5, 2)],
        ["never", spread(1, 1.25, 9)],
        ["once", 1.5],
    ]
    columns = ["net", "eager / fcnseg"]
    sides = ("fcnseg", "eager", "as users write it")
    columns += [f"{side}, ms" for side in sides]
    rows = [[*row, *(8.0 for _ in sides)] for row in rows]
    told = page_of("eager", {"name": "eager", "columns": columns, "rows": rows}, tmp_path)
    assert (
        "In brackets: the least and the greatest of 3 values.\n\nAim: at least 1.5 (eager / fcnseg)."
        " Reached in all rounds: always; once. Reached by the median, not in all rounds: usually. Missed: never.\n"
    ) in told


def test_servers_that_are_ahead_are_named(tmp_path: Path) -> None:
    rows = [
        ["`fcnseg serve`", spread(0.75, 0.8, 0.85), spread(0.9, 0.95, 1)],
        ["`fcnseg serve --tuned`", spread(0.9, 0.95, 1), spread(0.9, 0.95, 1)],
        ["fast, faster", spread(0.86, 0.87, 0.88), spread(0.9, 0.91, 0.92)],
        ["barely", spread(0.82, 0.87, 0.88), spread(0.8, 0.95, 0.96)],
        ["slow", spread(0.5, 0.6, 0.99), spread(0.5, 0.6, 0.99)],
    ]
    columns = ["server", "1 client, of session.run", "8 clients, of session.run"]
    told = page_of("serving_peers", {"name": "small", "columns": columns, "rows": rows}, tmp_path)
    assert (
        "Ahead of `fcnseg serve` with 1 client, ranges apart: fast, faster."
        " Ahead of `fcnseg serve` with 1 client by the median, ranges overlapping: barely."
        " Ahead of `fcnseg serve` with 8 clients: none.\n"
    ) in told

"""What benchmarks share: sides in turns, medians with their spread, and a report, printed and kept as JSON.

A report is read by `page.py`. Its file holds one object:

    benchmark, question   the file's name without .py, and the first line of its docstring
    command               what was run
    date, commit          of the run; `with changes` where tracked sources differed from the commit
    machine               processor, cores, memory_gib, load (others' work at the start, in busy cores), gpu or null
    versions              of Python and of the packages that matter
    tables                each with name, title, columns, rows and note

A cell of a row is a text, a number, null, or a spread: {"median": ..., "low": ..., "high": ..., "values": [...]}, where
low and high are the least and the greatest of the values.
"""

import argparse
import datetime as dt
import inspect
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from fcnseg.cores import usable_cores
from fcnseg.installed import installed_versions

ROOT = Path(__file__).parent.parent
PACKAGES = ("fcnseg", "onnxruntime-gpu", "onnxruntime", "numpy", "opencv-python", "grpcio", "torch", "torchvision")
WRITTEN = ("benchmarks/results", "docs/benchmarks.md", "docs/images")


@dataclass(frozen=True)
class Spread:
    """Figures of one thing, one a round."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def scaled(self, factor: float) -> Self:
        """In another unit."""
        return self.of(value * factor for value in self.values)

    def over(self, other: "Spread") -> Self:
        """Ratios to another's, round by round: what slows a whole round stands on both sides of its ratio."""
        return self.of(own / theirs for own, theirs in zip(self.values, other.values, strict=True))

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{number(self.median)} (once)"
        if min(self.values) == max(self.values):
            return number(self.median)
        return f"{number(self.median)} ({number(min(self.values))} to {number(max(self.values))})"

    def as_json(self) -> dict[str, Any]:
        low, high = min(self.values), max(self.values)
        return {"median": self.median, "low": low, "high": high, "values": list(self.values)}


Cell = str | float | Spread | None
Side = TypeVar("Side")


def number(value: float) -> str:
    """Three digits that count, or the whole number."""
    size = abs(value)
    if value == int(value) or size >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, once."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(sides: Mapping[str, Callable[[], object]], rounds: int, at_least_s: float = 0.0) -> dict[str, Spread]:
    """Seconds of each side, a value a round: sides alternate, so that what else the machine does falls on all.

    Every second round goes through them backwards, so that none always comes first or after the same other.

    Args:
        sides: What is timed, by name; each is run once before, for nothing.
        rounds: How many values of each.
        at_least_s: How long a side goes on within a round; the round's value is its median there. A first run, with
            which the threads of the side before still interfere, does not count.
    """
    for work in sides.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in ordered(sides, turn):
            work = sides[name]
            if at_least_s:
                work()
            times = [seconds(work)]
            while sum(times) < at_least_s:
                times.append(seconds(work))
            found[name].append(statistics.median(times))
    return {name: Spread.of(times) for name, times in found.items()}


def ordered(sides: Iterable[Side], turn: int) -> list[Side]:
    """The order in which a round, counted from 0, goes through its sides."""
    return list(sides)[:: -1 if turn % 2 else 1]


class Table:
    """Rows of cells under columns, printed as they come."""

    def __init__(self, name: str, title: str, columns: Sequence[str], note: str) -> None:
        self.name, self.title, self.columns, self.note = name, title, tuple(columns), note
        self.rows: list[tuple[Cell, ...]] = []
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def add(self, *cells: Cell) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"table {self.name} has {len(self.columns)} columns; got {len(cells)} cells")
        self.rows.append(cells)
        print(f"| {' | '.join(map(_shown, cells))} |", flush=True)

    def as_json(self) -> dict[str, Any]:
        rows = [[cell.as_json() if isinstance(cell, Spread) else cell for cell in row] for row in self.rows]
        return {
            "name": self.name,
            "title": self.title,
            "columns": list(self.columns),
            "rows": rows,
            "note": self.note,
        }


class Report:
    """A benchmark's figures with what is needed to get them again; for a file that is run as a script.

    Args:
        json_file: Where `write` puts it; None leaves it printed alone.
        gpu: The GPU's name where one took part.
    """

    def __init__(self, json_file: Path | None = None, gpu: str | None = None) -> None:
        main = sys.modules["__main__"]
        self._file = json_file
        self._tables: list[Table] = []
        self._head: dict[str, Any] = {
            "benchmark": Path(sys.argv[0]).stem,
            "question": (inspect.getdoc(main) or "").split("\n", 1)[0],
            "command": command_line(),
            "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
            "commit": commit(),
            "machine": machine(gpu),
            "versions": versions(),
        }
        told, run = self._head["machine"], f"commit {self._head['commit'] or 'unknown'}, {self._head['date']}"
        print(f"{told['cores']} cores of {told['processor']}, load {told['load']}, {self._head['versions']}; {run}")

    def table(self, name: str, title: str, columns: Sequence[str], note: str = "") -> Table:
        """Begin a table; the one of that name is gone on with, if it is the last."""
        if not self._tables or self._tables[-1].name != name:
            self._tables.append(Table(name, title, columns, note))
        return self._tables[-1]

    def write(self) -> None:
        """Print the notes of its tables, and keep it, if a file was named."""
        for table in self._tables:
            if table.note:
                print(f"\n{table.title}: {table.note}")
        self.keep()

    def keep(self) -> None:
        """Keep what there is of it so far, if a file was named."""
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self._head | {"tables": [table.as_json() for table in self._tables]}, indent=1)
            part = self._file.with_name(f"{self._file.name}.part")  # one that is cut off leaves what was there
            part.write_text(text + "\n")
            part.replace(self._file)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark the option that all of them have."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures for page.py")


def chosen(parser: argparse.ArgumentParser, asked: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """The questions that were asked, or all; ends the program where one is unknown."""
    if unknown := set(asked) - set(known):
        parser.error(f"no question {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return asked or known


def command_line() -> str:
    """The command as typed at the root, without where its figures are kept."""
    script = Path(sys.argv[0]).resolve()
    name = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_json_option(parser)
    return shlex.join(["python", name, *parser.parse_known_args()[1]])


def commit() -> str:
    """The commit that is checked out, and whether sources differ from it; empty without git, or outside of it."""
    if shutil.which("git") is None:
        return ""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if found.returncode:
        return ""
    others = [f":(exclude){path}" for path in WRITTEN]
    same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", *others], cwd=ROOT, check=False)
    return found.stdout.strip() + (" with changes" if same.returncode else "")


def machine(gpu: str | None = None) -> dict[str, Any]:
    """What the figures belong to."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": usable_cores(),
        "memory_gib": round(pages / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "gpu": gpu,
    }


def versions() -> dict[str, str]:
    """Of Python, and of the packages that are there."""
    return {"python": platform.python_version(), **installed_versions(PACKAGES)}


def peak_mib(pid: int | str = "self") -> float:
    """The most memory that a process had resident so far; 0 where it has ended."""
    return _status(pid, "VmHWM")


def resident_mib(pid: int | str = "self") -> float:
    """The memory that a process has resident; 0 where it has ended."""
    return _status(pid, "VmRSS")


def _status(pid: int | str, field: str) -> float:
    fields = dict(line.split(":", 1) for line in _lines(f"/proc/{pid}/status"))
    return int(fields.get(field, "0").split()[0]) / 1024


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # not Linux, or no such process any more
        return []


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    return number(cell) if isinstance(cell, (int, float)) else str(cell)

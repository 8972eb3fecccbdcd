"""Run all benchmarks, one after the other, and make docs/benchmarks.md of their figures.

Run it: python benchmarks/run_all.py [NAME ...] [--again] [--quick]

By default it runs what needs neither a GPU nor a data folder (`catalogue.py`); a NAME is a file's, without .py. Figures
go to benchmarks/results/. What has figures of this very commit and command there is not run once more, so that a run
that was cut off goes on; `--again` runs it all the same. One that fails leaves its figures as they were, and the others
go on: the last line tells which failed, and the exit code is then 1.

`--quick` runs every benchmark at its smallest sizes, those of a GPU on the CPU and those of data on generated scenes,
to see that each starts, checks its masks and ends: its figures mean nothing, and are not kept.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from catalogue import BENCHMARKS
from reporting import ROOT, commit
from result_files import NotAReportError, read

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def is_measured(name: str, results: Path, now: str) -> bool:
    """Whether there are figures of the benchmark, as it runs by default, at a commit without changes."""
    try:
        report = read(results / f"{name}.json")
    except (FileNotFoundError, NotAReportError):
        return False
    return (
        bool(now) and "changes" not in now and (report.commit, report.command) == (now, f"python benchmarks/{name}.py")
    )


def run(name: str, arguments: list[str], results: Path) -> bool:
    """Run a benchmark, and keep its figures; false, and the figures there were, where it fails."""
    kept, new = results / f"{name}.json", results / f"{name}.new"
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments, "--json", str(new)]
    print(f"\n== {' '.join([f'{name}.py', *arguments])}", flush=True)
    began = time.monotonic()
    variables = {**os.environ, "OMP_NUM_THREADS": "1"} if name == "fc_transfer" else None
    try:
        code = subprocess.run(command, check=False, env=variables).returncode
        if not code:
            new.rename(kept)
    finally:
        new.unlink(missing_ok=True)
    print(
        f"== {name}.py {f'failed with exit code {code}' if code else 'ended'}, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return not code


def run_all(names: list[str], arguments: dict[str, list[str]], results: Path, docs: Path) -> list[str]:
    """Run benchmarks, and make the page; those that failed."""
    failed = [name for name in names if not run(name, arguments[name], results)]
    page = [sys.executable, str(HERE / "page.py"), "--results", str(results), "--docs", str(docs)]
    if subprocess.run(page, check=False).returncode:
        failed.append("page")
    return failed


def run_quickly(names: list[str]) -> list[str]:
    """Run benchmarks at their smallest sizes, for nothing; those that failed."""
    with tempfile.TemporaryDirectory() as temporary:
        data, results = Path(temporary) / "scenes", Path(temporary) / "results"
        results.mkdir()
        scenes = [sys.executable, "-m", "fcnseg", "scenes", str(data), "--train", "8", "--val", "2", "--size", "64"]
        subprocess.run(scenes, check=True)
        arguments = {name: [str(data) if part == "DATA" else part for part in BENCHMARKS[name].quick] for name in names}
        return run_all(names, arguments, results, Path(temporary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="those that need neither a GPU nor data, by default")
    parser.add_argument("--again", action="store_true", help="also what has figures of this commit")
    parser.add_argument("--quick", action="store_true", help="every benchmark at its smallest sizes, for nothing")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    began = time.monotonic()
    if options.quick:
        names = options.names or list(BENCHMARKS)
        failed = run_quickly(names)
    else:
        names = options.names or [name for name, benchmark in BENCHMARKS.items() if not benchmark.by_hand]
        if by_hand := [name for name in names if BENCHMARKS[name].by_hand]:
            parser.error(
                f"{', '.join(by_hand)} needs more than this can give; benchmarks/README.md tells how to run it"
            )
        now = commit()
        measured = [name for name in names if not options.again and is_measured(name, RESULTS, now)]
        for name in measured:
            print(f"{name}.py has figures of this commit")
        names = [name for name in names if name not in measured]
        failed = run_all(names, {name: [] for name in names}, RESULTS, ROOT / "docs")
    took = f"{(time.monotonic() - began) / 60:.0f} min"
    if failed:
        raise SystemExit(f"failed: {', '.join(f'{name}.py' for name in failed)}; {took}")
    print(f"all of {len(names)} ended well; {took}")


if __name__ == "__main__":
    main()

"""Makes docs/benchmarks.md, with its pictures, of what the benchmarks kept in benchmarks/results/.

Run it: python benchmarks/page.py [--results FOLDER] [--docs FOLDER]

Every figure on the page stands in one of these files, and so does what is said of reached and missed aims. What has no
file there is named.
"""

import argparse
from pathlib import Path

from catalogue import BENCHMARKS
from matplotlib import pyplot as plt
from pictures import PICTURES, style
from reporting import ROOT, number
from result_files import Figure, Result, Table, read
from verdicts import verdicts

_AT_A_TIME = (
    "is the most for one run at a time that has all cores. Two runs at a time on half of the cores each may get more"
    " out of them, and a ratio above 1 is that."
)
NOTES = {
    "folder": f"T / (T + C) {_AT_A_TIME} `fcnseg segment` runs so by default.",
    "serving_load": f"The loop's rate {_AT_A_TIME} `fcnseg serve` runs so while images wait. Where a difference in"
    " milliseconds is below 0, the machine's pace changed between two turns by more than the server costs. The overload"
    " was measured once.",
    "serving_peers": "`fcnseg serve` runs two images at a time while more wait, with half of the threads each; the"
    " peers and `--runners 1` run one, with all of them. Servers whose ranges overlap are not told apart by so few"
    " rounds.",
    "scaling": "Where a row's operators add up to more than its seconds a megapixel, they are those of a first run,"
    " which also gets its memory from the system: nothing is to be read from them.",
    "tail": "Without `--image` the picture is noise, in which nearly half of the blocks lie on borders; on a street"
    " scene it is a seventh, and tails that compute at borders alone take less.",
}
"""What has to be known of a benchmark's figures and does not stand in its tables."""
INTRODUCTION = """\
# Benchmarks

Made by benchmarks/page.py from the figures in [benchmarks/results/](../benchmarks/results/), each by the command that
stands with it; [benchmarks/](../benchmarks/README.md) tells what each one does, and has the figures of those that are
run by hand, and [gpu.md](gpu.md) those of a GPU.

A cell is one figure, counted or measured once, or the median of rounds and in brackets the least and the greatest,
`once` where there was one round. The brackets hold all rounds, outliers too: with more rounds they grow, and they are
no confidence interval. Sides that are compared took turns within one run. Their ratio is formed within a round, and the
cell has the median of these ratios, which need not be that of the medians beside it. The ratios are what to read, since
absolute times belong to one machine. What was asked for, and whether it is reached or missed, stands below its table.
"""


def page(results: dict[str, Result], images: Path) -> str:
    """The page's Markdown, its pictures beside it in a folder."""
    parts = [INTRODUCTION]
    parts += [
        section(results[name], draw(results[name], images), images.name) for name in BENCHMARKS if name in results
    ]
    if missing := [name for name in BENCHMARKS if name not in results]:
        needs = {name: f" (needs {needed})" if (needed := BENCHMARKS[name].needs) else "" for name in missing}
        parts.append(f"Not kept as JSON: {', '.join(f'{name}.py{needs[name]}' for name in missing)}.\n")
    return "\n".join(parts)


def section(result: Result, pictures: dict[str, str], folder: str) -> str:
    """A benchmark's part of the page.

    Args:
        result: Its figures.
        pictures: File names of its pictures, by the table that they belong to.
        folder: Where the pictures lie, relative to the page.
    """
    machine, versions = result.machine, ", ".join(f"{name} {version}" for name, version in result.versions.items())
    devices = f"{machine.cores} cores of {machine.processor}" + (f" and {machine.gpu}" if machine.gpu else "")
    told = f"{devices}, {machine.memory_gib:g} GiB, load {machine.load:g} at the start; {versions}"
    commit = f"commit {result.commit or 'unknown'}, {result.date}"
    lines = [f"## {result.question}", "", f"    {result.command}", "", f"{told}; {commit}.", ""]
    if result.benchmark in NOTES:
        lines += [NOTES[result.benchmark], ""]
    for table in result.tables:
        lines += [f"### {table.title}", ""]
        if table.name in pictures:
            lines += [f"![{table.title}]({folder}/{pictures[table.name]})", ""]
        lines += [*markdown(table), ""]
        remarks = [rounds(table), table.note, *verdicts(result, table)]
        if any(remarks):
            lines += [" ".join(filter(None, remarks)), ""]
    return "\n".join(lines)


def rounds(table: Table) -> str:
    """Of how many values its ranges are, in words; nothing where it has none."""
    counts = {len(cell.values) for row in table.rows for cell in row if isinstance(cell, Figure)} - {1}
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    return f"In brackets: the least and the greatest of {least if least == most else f'{least} to {most}'}."


def markdown(table: Table) -> list[str]:
    rows = [f"| {' | '.join(map(shown, row))} |" for row in table.rows]
    return [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}", *rows]


def shown(cell: Figure | float | str | None) -> str:
    if cell is None:
        return ""
    return number(cell) if isinstance(cell, (int, float)) else str(cell).replace("|", "\\|")


def draw(result: Result, images: Path) -> dict[str, str]:
    """Draw a benchmark's pictures; their file names, by table."""
    if result.benchmark not in PICTURES:
        return {}
    files = {}
    with style():
        for name, picture in PICTURES[result.benchmark](result).items():
            files[name] = f"benchmarks-{result.benchmark.replace('_', '-')}-{name}.svg"
            picture.savefig(images / files[name], metadata={"Date": None})
            plt.close(picture)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs", help="benchmarks.md goes there, pictures to images/"
    )
    arguments = parser.parse_args()
    results = {path.stem: read(path) for path in sorted(arguments.results.glob("*.json"))}
    if unknown := sorted(set(results) - set(BENCHMARKS)):
        raise SystemExit(f"{arguments.results} has results of {', '.join(unknown)}, which the page has no place for")
    images = arguments.docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob("benchmarks-*.svg"):
        old.unlink()
    target = arguments.docs / "benchmarks.md"
    target.write_text(page(results, images))
    print(f"{target}: {len(results)} of {len(BENCHMARKS)} benchmarks")


if __name__ == "__main__":
    main()

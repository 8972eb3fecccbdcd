"""Makes docs/benchmarks.md, with its pictures, from the figures that the benchmarks kept in benchmarks/results/.

Run it: python benchmarks/page.py [--results FOLDER] [--docs FOLDER]

Every figure on the page comes from one of these files, and so does whether an aim is reached or missed. Benchmarks
without a file are named.
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
    "is the most for one run at a time that has all cores. Two runs at a time, on half of the cores each, may reach"
    " more: the ratio is then above 1."
)
NOTES = {
    "folder": f"T / (T + C) {_AT_A_TIME} `fcnseg segment` does this by default.",
    "serving_load": f"The loop's rate {_AT_A_TIME} `fcnseg serve` does this while images wait. A difference in"
    " milliseconds below 0 means that the machine's pace changed between two turns by more than the server costs. The"
    " overload was measured once.",
    "serving_peers": "`fcnseg serve` runs two images at a time while more wait, with half of the threads each. The"
    " peers and `--runners 1` run one image at a time, with all threads. So few rounds cannot tell servers apart whose"
    " ranges overlap.",
    "scaling": "Where a row's operators add up to more than its seconds per megapixel, they were measured in a first"
    " run, which also gets its memory from the system. Draw no conclusions from such a row.",
    "tail": "Without `--image` the picture is noise, in which nearly half of the blocks lie on borders. On a street"
    " scene it is a seventh, and tails that compute only at borders take less time.",
}
"""What a reader has to know about a benchmark's figures and the tables do not say."""
INTRODUCTION = """\
# Benchmarks

benchmarks/page.py makes this page from the figures in [benchmarks/results/](../benchmarks/results/). The command above
each section's tables made its figures. [benchmarks/](../benchmarks/README.md) describes each benchmark, and has the
figures of those that are run by hand. [gpu.md](gpu.md) has the figures of a GPU.

How to read the tables:

- A cell is one figure that was counted or measured once, or a median of rounds, with the least and the greatest in
  brackets. `once` means that there was only one round.
- The brackets include all rounds, outliers too. More rounds widen them. They are no confidence interval.
- The sides of a comparison took turns within one run. Their ratio is formed within each round, and the cell has the
  median of these ratios. It may differ from the ratio of the medians beside it.
- Compare the ratios: absolute times belong to one machine.
- An aim, and whether it is reached or missed, stands below its table.
"""


def page(results: dict[str, Result], images: Path) -> str:
    """Return the page's Markdown, and draw its pictures into a folder."""
    parts = [INTRODUCTION]
    parts += [
        section(results[name], draw(results[name], images), images.name) for name in BENCHMARKS if name in results
    ]
    if missing := [name for name in BENCHMARKS if name not in results]:
        needs = {name: f" (needs {needed})" if (needed := BENCHMARKS[name].needs) else "" for name in missing}
        parts.append(f"Without figures here: {', '.join(f'{name}.py{needs[name]}' for name in missing)}.\n")
    return "\n".join(parts)


def section(result: Result, pictures: dict[str, str], folder: str) -> str:
    """Return a benchmark's part of the page.

    Args:
        result: Its figures.
        pictures: File names of its pictures, by the name of their table.
        folder: The pictures' folder, relative to the page.
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
        for remarks in ([rounds(table), table.note], verdicts(result, table)):
            if paragraph := " ".join(filter(None, remarks)):
                lines += [paragraph, ""]
    return "\n".join(lines)


def rounds(table: Table) -> str:
    """Say how many values the brackets of a table span; nothing where it has no brackets."""
    counts = {len(cell.values) for row in table.rows for cell in row if isinstance(cell, Figure)} - {1}
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    return f"In brackets: the least and the greatest of {least if least == most else f'{least} to {most}'} values."


def markdown(table: Table) -> list[str]:
    rows = [f"| {' | '.join(map(shown, row))} |" for row in table.rows]
    return [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}", *rows]


def shown(cell: Figure | float | str | None) -> str:
    if cell is None:
        return ""
    return number(cell) if isinstance(cell, (int, float)) else str(cell).replace("|", "\\|")


def draw(result: Result, images: Path) -> dict[str, str]:
    """Draw a benchmark's pictures, and return their file names by table."""
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

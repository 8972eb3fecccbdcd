"""`fcnseg check`: what is wrong with a data set, before it is trained on."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnseg.files import printable

if TYPE_CHECKING:
    from rich.console import Console

    from training.doctor import Diagnosis

_SHOWN = 5


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write an HTML report to this file: all findings, the share of each class, and samples with their masks.",
)
@click.option("--all", "show_all", is_flag=True, help=f"Print all cases, not only {_SHOWN} of each kind.")
def check(data: Path, report: Path | None, *, show_all: bool) -> None:
    """Check the images and masks of the folder DATA, in any layout that 'fcnseg train' reads.

    Errors: files that cannot be read, images without masks, masks without images, images and masks of different sizes,
    ids that are not classes, binary masks of 0 and 255, colours that belong to no class, and a training or validation
    split without any label. Warnings: a missing split, classes that occur in no mask, and near-duplicate images in
    different splits, found by a perceptual hash.

    The exit code is 1 if there are errors, and 0 otherwise. 'fcnseg train' makes the same checks before it starts.

    \b
    Example: fcnseg check camvid/ --report camvid.html
    """
    from rich.console import Console

    from fcnseg.files import require_report_place, write_bytes
    from training.doctor import diagnose

    if report is not None:
        require_report_place(report, ".html")
    with Console(stderr=True).status("examining images and masks"):
        diagnosis = diagnose(data)
    console = Console()
    _print_splits(console, diagnosis)
    _print_findings(console, diagnosis, None if show_all else _SHOWN)
    if report is not None:
        from training.doctor_page import to_html

        write_bytes(report, to_html(diagnosis))
    if diagnosis.errors:
        sys.exit(1)


def _print_splits(console: "Console", diagnosis: "Diagnosis") -> None:
    from rich.markup import escape
    from rich.table import Table

    if diagnosis.dataset.note is not None:
        console.print(printable(diagnosis.dataset.note), highlight=False, markup=False, soft_wrap=True)
    table = Table("class", box=None)
    for split, found in diagnosis.contents.items():
        table.add_column(escape(f"{printable(split)} ({found.images} images)"), justify="right")
    contents = diagnosis.contents.values()
    for info in diagnosis.dataset.label_map.classes:
        shares = [found.class_pixels[info.id] / max(1, sum(found.class_pixels)) for found in contents]
        table.add_row(escape(info.name), *(f"{share:.2%}" for share in shares))
    unlabelled = [found.ignored_pixels / max(1, sum(found.class_pixels) + found.ignored_pixels) for found in contents]
    if any(unlabelled):
        table.add_row("[dim](no label)[/dim]", *(f"[dim]{share:.2%}[/dim]" for share in unlabelled))
    console.print(table)


def _print_findings(console: "Console", diagnosis: "Diagnosis", shown: int | None) -> None:
    from rich.text import Text

    for finding in diagnosis.findings:
        colour = "red" if finding.severity == "error" else "yellow"
        where = "" if finding.split is None else f" in {printable(finding.split)}"
        title = Text(f"{finding.severity}: {finding.kind}{where}: {len(finding.messages)}", style=f"bold {colour}")
        console.print(title)
        for message in finding.messages[:shown]:
            console.print(f"  {printable(message)}", highlight=False, markup=False, soft_wrap=True)
        if shown is not None and len(finding.messages) > shown:
            console.print(f"  ... and {len(finding.messages) - shown} more: --all prints them", style="dim")
    errors = sum(len(finding.messages) for finding in diagnosis.errors)
    warnings = sum(len(finding.messages) for finding in diagnosis.findings) - errors
    console.print(
        f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}", highlight=False
    )

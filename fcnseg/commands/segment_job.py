"""What `fcnseg segment` shows of a job: how far it is, what failed, and what it comes to."""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from fcnseg.commands.options import show_regions
from fcnseg.errors import PartialFailureError
from fcnseg.files import shown
from fcnseg.folder import Job, SegmentedImage
from fcnseg.folder.names import REPORT
from fcnseg.folder.totals import Totals
from fcnseg.frames import is_video
from fcnseg.regions import Region
from fcnseg.types import LabelMap

_CLASSES_SHOWN = 24
_NAMES_SHOWN = 5


class TileProgress:
    """Shows how far an image is that is segmented in tiles."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self._tasks: dict[Path, TaskID] = {}

    def show(self, image: Path, done: int, total: int) -> None:
        """Show that so many tiles are done."""
        if self.progress is None:
            return
        if image not in self._tasks:
            self._tasks[image] = self.progress.add_task(
                f"tiles of {shown(Path(image.name))}", total=total, rate="", failures=""
            )
        self.progress.update(self._tasks[image], completed=done)

    def end(self, image: Path) -> None:
        """Show nothing of an image any more."""
        if self.progress is not None and image in self._tasks:
            self.progress.remove_task(self._tasks.pop(image))


def run_job(job: Job, tiles: TileProgress) -> None:
    """Do a job, show how far it is, and sum it up.

    Raises:
        PartialFailureError: Images failed.
    """
    label_map, total = job.model.label_map, len(job.plan.images)
    totals, skipped = Totals(), 0
    found: tuple[Region, ...] = ()
    began = time.monotonic()
    try:
        with closing(job.run()) as results:
            for result in _shown(results, total, tiles):
                totals.add(result.row)
                skipped += result.skipped
                found = result.regions
    except KeyboardInterrupt:
        if not job.plan.single:
            same = "the same command without --overwrite" if job.options.overwrite else "the same command"
            click.echo(f"interrupted; the images in progress were finished, and {same} continues from here", err=True)
        raise
    seconds = time.monotonic() - began
    _show_classes(totals, label_map)
    if job.options.top:
        _show_top(totals, label_map)
    if job.options.regions and job.plan.single and totals.done:
        show_regions(found)
    done = totals.done - skipped
    before = f", {skipped} were done before" if skipped else ""
    where = job.output / job.plan.images[0].mask if job.plan.single else job.output
    click.echo(
        f"{done} of {total} images segmented in {seconds:.1f} s ({done / seconds:.1f} images/s on {job.model.at})"
        f"{before}, {totals.failed} failed; masks: {shown(where)}"
    )
    if job.options.report and not job.plan.single:
        click.echo(f"report: {shown(job.output / REPORT)}")
    if totals.failed:
        names = ", ".join(shown(Path(name)) for name, _ in totals.failures[:_NAMES_SHOWN])
        rest = totals.failed - _NAMES_SHOWN
        video = job.plan.single and is_video(Path(job.plan.images[0].image))
        raise PartialFailureError(
            f"{totals.failed} of {total} images failed: {names}{f' and {rest} more' if rest > 0 else ''};"
            f" the reasons are above{'; of a video, name an OUTPUT such as out.mp4' if video else ''}"
        )


def _shown(results: Iterable[SegmentedImage], total: int, tiles: TileProgress) -> Iterator[SegmentedImage]:
    """Pass results on, show how far they are, and name failures on stderr."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failures]}"),
    )
    failed = done = 0
    notices: set[str] = set()
    began = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("segmenting", total=total, rate="", failures="")
        tiles.progress = progress
        for result in results:
            tiles.end(result.image)
            if result.notice is not None and result.notice not in notices:
                notices.add(result.notice)
                console.print(f"note: {shown(result.image)}: {result.notice}", markup=False, soft_wrap=True)
            if (reason := result.row.error) is not None:
                failed += 1
                image = shown(result.image)
                named = reason if image in reason else f"{image}: {reason}"
                console.print(f"failed: {named}", markup=False, soft_wrap=True)
            done += not result.skipped
            rate = f"{done / (time.monotonic() - began):.1f} images/s"
            progress.update(task, advance=1, rate=rate, failures=f"{failed} failed" if failed else "")
            yield result


def _show_classes(totals: Totals, label_map: LabelMap) -> None:
    if not totals.pixels:
        return
    table = Table()
    table.add_column("id", justify="right")
    table.add_column("class")
    table.add_column("share", justify="right")
    table.add_column("images", justify="right")
    for index, pixels in totals.pixels.most_common(_CLASSES_SHOWN):
        share = f"{pixels / totals.pixels.total():.1%}"
        table.add_row(str(index), escape(label_map.classes[index].name), share, str(totals.images[index]))
    Console().print(table)
    if len(totals.pixels) > _CLASSES_SHOWN:
        click.echo(f"and {len(totals.pixels) - _CLASSES_SHOWN} classes with smaller shares")


def _show_top(totals: Totals, label_map: LabelMap) -> None:
    """Print the classes that were among the most probable of an image: the most images first, then the highest."""
    table = Table()
    table.add_column("rank", justify="right")
    table.add_column("most probable class")
    table.add_column("highest probability", justify="right")
    table.add_column("images", justify="right")
    ranked = sorted(totals.top.items(), key=lambda item: (-item[1].images, -item[1].highest))
    for rank, (index, peaks) in enumerate(ranked[:_CLASSES_SHOWN], start=1):
        name = escape(label_map.classes[index].name)
        table.add_row(str(rank), name, f"{peaks.highest:.3f}", str(peaks.images))
    Console().print(table)
    if len(ranked) > _CLASSES_SHOWN:
        click.echo(f"and {len(ranked) - _CLASSES_SHOWN} classes that are most probable in fewer images")

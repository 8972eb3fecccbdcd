"""`fcnseg segment`: masks for an image or any number of images."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnseg.commands.access import access_options, open_client
from fcnseg.commands.options import (
    Output,
    device_option,
    refuse_given,
    region_options,
    show_regions,
    threads_option,
    tuned_option,
)
from fcnseg.files import shown

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fcnseg.folder import Job, SegmentedImage
    from fcnseg.folder.options import Tile
    from fcnseg.folder.totals import Totals
    from fcnseg.regions import Region, RegionQuery
    from fcnseg.tuning import Settings
    from fcnseg.types import LabelMap

_CLASSES_SHOWN = 24
_NAMES_SHOWN = 5
_MIB = 1 << 20
_MOST_CONNECTIONS = 16
"""To a server. Each request under way has one, so that processes and servers behind one address share them out."""
_OF_LOCAL_MODELS = {"device", "threads", "tuned", "batch", "tile"}
_OF_VIDEOS = {"model", "source", "output", "device", "threads", "tuned", "stored_orientation", "overlay"}


@click.command()
@click.argument("model")
@click.argument("source", metavar="INPUT")
@click.argument("output", type=Output())
@click.option(
    "--format",
    "mask_format",
    default="png",
    show_default=True,
    type=click.Choice(["png", "tiff", "npy", "coco"]),
    help="Masks as indexed PNG, TIFF, NumPy arrays, or COCO JSON with run lengths (one file an image, and one of all).",
)
@click.option(
    "--overlay",
    is_flag=True,
    help="Also write photo.overlay.jpg: the image tinted with its classes, and boxes where regions are asked for.",
)
@click.option(
    "--confidence",
    is_flag=True,
    help="Also write photo.confidence.png: how probable each pixel's class is, from 0 (black) to 1 (white).",
)
@click.option(
    "--heatmap",
    "heatmaps",
    metavar="CLASS",
    multiple=True,
    help="Also write photo.heatmap-ID-NAME.jpg: where this class (name or id) scores high. May be repeated.",
)
@click.option(
    "--top",
    metavar="N",
    default=0,
    type=click.IntRange(min=0),
    help="Also write the heatmaps of the N classes that are most probable anywhere in an image, and list them.",
)
@region_options
@click.option(
    "--overwrite/--skip-existing",
    help="Do everything anew, or go on with what an earlier run left undone.  [default: skip-existing]",
)
@click.option("--stored-orientation", is_flag=True, help="Leave pixels as they are stored, whatever EXIF says is up.")
@click.option("--report/--no-report", default=True, help="Write report.html.  [default: report]")
@device_option
@threads_option("0; for many images two run at a time, with half of the cores each")
@tuned_option
@click.option(
    "--workers",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Threads that decode images, and as many that write; 0 takes one per core.",
)
@click.option(
    "--batch",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Most images of one padded size that run together; 0 takes what was tuned, else 1 on the CPU, 8 on CUDA.",
)
@click.option(
    "--tile",
    default="auto",
    show_default=True,
    metavar="auto|none|N",
    help="Segment large images in tiles of N pixels a side: the same mask in less memory. auto: where --memory asks for"
    " it.",
)
@click.option(
    "--memory",
    "memory_mib",
    metavar="MIB",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="What images under way may take together, and again what runs of the model may, in MiB.",
)
@click.option(
    "--server",
    metavar="HOST:PORT",
    help="Let this server do it; MODEL is then the name of one of its models, or NAME/VERSION.",
)
@click.option(
    "--in-flight",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Requests under way to the server at a time.",
)
@click.option(
    "--timeout",
    "timeout_s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that a server's answer may take, retries included.",
)
@access_options
def segment(
    *,
    model: str,
    source: str,
    output: Path,
    mask_format: str,
    overlay: bool,
    confidence: bool,
    heatmaps: tuple[str, ...],
    top: int,
    regions: "RegionQuery | None",
    overwrite: bool,
    stored_orientation: bool,
    report: bool,
    device: str,
    threads: int | None,
    tuned: bool,
    workers: int,
    batch: int,
    tile: str,
    memory_mib: int,
    server: str | None,
    in_flight: int,
    timeout_s: float,
    **access: Any,
) -> None:
    """Segment INPUT with the file MODEL, and write a mask for every image to OUTPUT.

    INPUT is an image, a folder (at any depth), a pattern such as 'photos/**/*.jpg', or a text file with a path in each
    line. Its tree is mirrored: INPUT/a/photo.jpg gives OUTPUT/a/photo.png. Beside the masks are manifest.jsonl, a line
    for every image, and report.html. Ctrl-C, or worse, loses nothing: the same command goes on where it was. A broken
    image is named, the others are done, and the exit code is 1.

    With an OUTPUT such as out.mp4, INPUT is a video, a folder of frames or a pattern such as frames/%05d.png: OUTPUT is
    the overlay video, and out.manifest.jsonl beside it has a line for every frame.

    Example: fcnseg segment model.onnx photos/ masks/ --overlay

    Example: fcnseg segment my-model photos/ masks/ --server gpu-box:50051
    """
    from fcnseg.folder import FolderOptions, Job, LocalModel, MaskFormat, ServerModel, plan
    from fcnseg.folder.local_model import open_model
    from fcnseg.frames import is_video

    options = FolderOptions(
        MaskFormat(mask_format),
        overlay,
        confidence,
        heatmaps,
        top,
        regions,
        upright=not stored_orientation,
        overwrite=overwrite,
        report=report,
        tile=_read_tile(tile),
        workers=workers,
        batch=batch,
        in_flight=in_flight,
        memory_bytes=memory_mib * _MIB,
    )
    context = click.get_current_context()
    if is_video(output) and not output.is_dir():
        refuse_given(
            {str(parameter.name) for parameter in context.command.params} - _OF_VIDEOS,
            "a video takes no {}; for its frames' masks give a folder of them, and one for OUTPUT",
        )
        _segment_video(Path(model), Path(source), output, device, threads, tuned=tuned, upright=not stored_orientation)
        return
    found = plan(source, output, options.mask_format)
    if found.mask_format is not options.mask_format:  # the name of a single image's mask says it
        refuse_given({"mask_format"}, "{} for a single mask whose name ends otherwise; leave one of the two out")
    with ExitStack() as stack:
        tiles = _Tiles()
        if server is None:
            refuse_given(
                {"in_flight", "timeout_s", *access},
                "{} without a server; name one by --server, or leave it out",
            )
            segmenter, at_a_time = open_model(Path(model), device, threads, tuned=tuned, single=found.single)
            _tell_tuned(Path(model), replace(segmenter.tuned, max_batch=None) if batch else segmenter.tuned)
            job = Job(LocalModel(segmenter, options, tiles.show, at_a_time), found, options)
        else:
            refuse_given(_OF_LOCAL_MODELS, "{} with --server, where the server decides that; leave it out")
            connections = min(in_flight, _MOST_CONNECTIONS)
            asking = open_client(server, timeout_s=timeout_s, connections=connections, **access)
            job = Job(ServerModel(stack.enter_context(asking), model, options), found, options)
        _run(job, tiles, top=bool(top))


def _tell_tuned(model: Path, used: "Settings") -> None:
    """Tell where tuned settings are used."""
    from fcnseg.tuning import tuning_path

    if used.said():
        click.echo(f"as {shown(tuning_path(model))} says: {used}", err=True)


def _segment_video(
    model: Path, source: Path, output: Path, device: str, threads: int | None, *, tuned: bool, upright: bool
) -> None:
    """Segment a video or a sequence of images into an overlay video and a manifest of its frames."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fcnseg.errors import PartialFailureError
    from fcnseg.files import require_place
    from fcnseg.frames import open_frames
    from fcnseg.segmenter import load
    from fcnseg.video import manifest_path, require_video_output, segment_video

    require_video_output(output)
    require_place(output, source)
    frames = open_frames(source, upright=upright)
    segmenter = load(model, device, threads, tuned=tuned, pipeline=True)
    _tell_tuned(model, replace(segmenter.tuned, max_batch=None))
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done, failed, began = 0, 0, time.monotonic()
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        closing(segment_video(segmenter, frames, output)) as results,
    ):
        task = progress.add_task("", total=frames.total)
        for result in results:
            done += 1
            if result.error is not None:
                failed += 1
                console.print(f"failed: frame {result.frame}: {result.error}", markup=False, soft_wrap=True)
            progress.advance(task)
    for note in frames.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    seconds = time.monotonic() - began
    click.echo(
        f"{done - failed} of {done} frames segmented in {seconds:.1f} s ({done / seconds:.1f} frames/s on"
        f" {segmenter.device}), {failed} failed; overlay: {shown(output)}, manifest: {shown(manifest_path(output))}"
    )
    if failed:
        raise PartialFailureError(f"{failed} of {done} frames failed; the reasons are above")


def _read_tile(text: str) -> "Tile":
    if text == "auto":
        return "auto"
    if text == "none":
        return "none"
    if text.isascii() and text.isdecimal():
        return int(text)
    raise click.BadParameter(f"{text!r} is neither auto nor none nor a number of pixels", param_hint="--tile")


class _Tiles:
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


def _run(job: "Job", tiles: _Tiles, *, top: bool) -> None:
    """Do a job, show how far it is, and sum it up."""
    from fcnseg.errors import PartialFailureError
    from fcnseg.folder.names import REPORT
    from fcnseg.folder.totals import Totals
    from fcnseg.frames import is_video

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
            click.echo(f"what was under way is finished; {same} goes on from here", err=True)
        raise
    seconds = time.monotonic() - began
    _show_classes(totals, label_map)
    if top:
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


def _shown(results: "Iterable[SegmentedImage]", total: int, tiles: _Tiles) -> "Iterator[SegmentedImage]":
    """Pass results on, show how far they are, and name failures on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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


def _show_classes(totals: "Totals", label_map: "LabelMap") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

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


def _show_top(totals: "Totals", label_map: "LabelMap") -> None:
    """Print the classes that were among the most probable of an image: the most images first, then the highest."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

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
        click.echo(f"and {len(ranked) - _CLASSES_SHOWN} classes that are so in fewer images")

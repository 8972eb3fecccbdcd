"""`fcnseg segment`: masks for an image or a folder of images."""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnseg.commands.options import region_options, region_query, show_regions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fcnseg.folder import SegmentedImage
    from fcnseg.regions import Region
    from fcnseg.types import ClassInfo, LabelMap

_CLASSES_SHOWN = 24
_NAMES_SHOWN = 5


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--overlay",
    is_flag=True,
    help="Also write photo.overlay.jpg: the image tinted with its classes, and boxes where regions are asked for.",
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
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto: a GPU where there is one."
)
@click.option(
    "--threads",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="CPU threads of the model; 0 takes one per physical core.",
)
def segment(
    *,
    model: Path,
    source: Path,
    output: Path,
    overlay: bool,
    heatmaps: tuple[str, ...],
    top: int,
    regions: bool,
    region_classes: tuple[str, ...],
    threshold: float,
    min_pixels: int,
    device: str,
    threads: int,
) -> None:
    """Segment INPUT, an image or a folder of images, with the file MODEL, and write indexed mask PNGs to OUTPUT.

    The folder's tree is mirrored: INPUT/a/photo.jpg gives OUTPUT/a/photo.png. A broken image is named, the others are
    done, and the exit code is 1.

    Example: fcnseg segment model.onnx photos/ masks/ --overlay
    """
    from fcnseg.errors import PartialFailureError
    from fcnseg.folder import plan, segment_folder
    from fcnseg.pictures import Pictures
    from fcnseg.segmenter import load

    planned = plan(source, output)
    segmenter = load(model, device, threads)
    label_map = segmenter.info.label_map
    query = region_query(regions=regions, region_classes=region_classes, threshold=threshold, min_pixels=min_pixels)
    for name in region_classes:
        label_map.find(name)  # a mistake is told before the first image, not of each
    pictures = Pictures(overlay, tuple(label_map.find(name) for name in heatmaps), top, query)
    began = time.monotonic()
    tally = _follow(segment_folder(segmenter, planned, pictures=pictures), len(planned))
    seconds = time.monotonic() - began
    _show_classes(tally, label_map)
    if top:
        _show_top(tally)
    if query and source.is_file() and tally.done:
        show_regions(tally.regions)
    click.echo(
        f"{tally.done} of {len(planned)} images segmented in {seconds:.1f} s"
        f" ({tally.done / seconds:.1f} images/s on {segmenter.device}), {len(tally.failed)} failed;"
        f" masks: {planned[0].mask if source.is_file() else output}"
    )
    if tally.failed:
        names = ", ".join(str(path) for path in tally.failed[:_NAMES_SHOWN])
        rest = len(tally.failed) - _NAMES_SHOWN
        raise PartialFailureError(
            f"{len(tally.failed)} of {len(planned)} images failed: {names}{f' and {rest} more' if rest > 0 else ''};"
            " the reasons are above"
        )


@dataclass
class _Tally:
    """What the summary needs to know of the results."""

    done: int = 0
    failed: list[Path] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    top: dict["ClassInfo", list[float]] = field(default_factory=dict)
    regions: tuple["Region", ...] = ()


def _follow(results: "Iterator[SegmentedImage]", total: int) -> _Tally:
    """Count results as they come, show how far they are, and name failures on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tally = _Tally()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for result in results:
            if result.error is None:
                tally.done += 1
                tally.pixels.update({area.info.id: area.pixels for area in result.classes})
                tally.images.update(area.info.id for area in result.classes)
                tally.regions = result.regions
                for peak in result.top:
                    tally.top.setdefault(peak.info, []).append(peak.probability)
            else:
                tally.failed.append(result.image)
                reason = " ".join(str(result.error).split())
                named = reason if str(result.image) in reason else f"{result.image}: {reason}"
                console.print(f"failed: {named}", markup=False, soft_wrap=True)
            progress.advance(task)
    return tally


def _show_classes(tally: _Tally, label_map: "LabelMap") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not tally.pixels:
        return
    table = Table()
    table.add_column("id", justify="right")
    table.add_column("class")
    table.add_column("share", justify="right")
    table.add_column("images", justify="right")
    for index, pixels in tally.pixels.most_common(_CLASSES_SHOWN):
        share = f"{pixels / tally.pixels.total():.1%}"
        table.add_row(str(index), escape(label_map.classes[index].name), share, str(tally.images[index]))
    Console().print(table)
    if len(tally.pixels) > _CLASSES_SHOWN:
        click.echo(f"and {len(tally.pixels) - _CLASSES_SHOWN} classes with smaller shares")


def _show_top(tally: _Tally) -> None:
    """Print the classes that were among the most probable of an image: the most images first, then the highest."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("rank", justify="right")
    table.add_column("most probable class")
    table.add_column("highest probability", justify="right")
    table.add_column("images", justify="right")
    ranked = sorted(tally.top.items(), key=lambda item: (-len(item[1]), -max(item[1])))
    for rank, (info, peaks) in enumerate(ranked[:_CLASSES_SHOWN], start=1):
        table.add_row(str(rank), escape(info.name), f"{max(peaks):.3f}", str(len(peaks)))
    Console().print(table)
    if len(ranked) > _CLASSES_SHOWN:
        click.echo(f"and {len(ranked) - _CLASSES_SHOWN} classes that are so in fewer images")

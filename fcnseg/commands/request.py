"""`fcnseg request`: ask a server for one image's mask."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnseg.commands.access import access_options, open_client
from fcnseg.commands.options import region_options, show_regions

if TYPE_CHECKING:
    from fcnseg.regions import RegionQuery
    from fcnseg.remote import RemoteSegmentation


@click.command()
@click.argument("server", metavar="HOST:PORT")
@click.argument("image", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File for the mask: .png (class ids, shown in the classes' colours) or .npy (array of class ids).",
)
@click.option(
    "--heatmap",
    "heatmaps",
    metavar="CLASS",
    multiple=True,
    help="Also write MASK.heatmap-ID-NAME.jpg, which shows where this class (name or id) scores high. May be repeated.",
)
@click.option(
    "--confidence",
    is_flag=True,
    help="Also write MASK.confidence.png: the probability of each pixel's class, from 0 (black) to 1 (white).",
)
@click.option(
    "--overlay",
    is_flag=True,
    help="Also write MASK.overlay.jpg: the image tinted in the classes' colours, with boxes if regions are requested.",
)
@click.option(
    "--class",
    "classes",
    metavar="CLASS",
    multiple=True,
    help="Show only this class (name or id) in mask and overlay; all other pixels get one extra id. May be repeated."
    " [default: all classes]",
)
@region_options
@click.option("--model", default="", help="Name of the model. [default: the only one served]")
@click.option("--version", default="", help="Version of the model. [default: the highest]")
@click.option(
    "--timeout",
    "timeout_s",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for the answer, including retries.",
)
@click.option(
    "--retries",
    metavar="N",
    default=3,
    show_default=True,
    type=click.IntRange(0, 4),
    help="How often to send the request again if the server does not answer or is overloaded.",
)
@access_options
def request(
    *,
    server: str,
    image: Path,
    output: Path,
    heatmaps: tuple[str, ...],
    confidence: bool,
    overlay: bool,
    classes: tuple[str, ...],
    regions: "RegionQuery | None",
    model: str,
    version: str,
    timeout_s: float,
    retries: int,
    **access: Any,
) -> None:
    """Send IMAGE to the server at HOST:PORT, and write the mask and any other output that is requested.

    Example: fcnseg request 127.0.0.1:50051 photo.jpg -o mask.png
    """
    from fcnseg.errors import UsageError
    from fcnseg.files import require_place
    from fcnseg.masks import Encoding
    from fcnseg.pictures import confidence_path, overlay_path, regions_path, write_regions

    suffix = output.suffix.lower()
    if suffix not in {".png", ".npy"}:
        raise UsageError(f"output {output} ends in {suffix!r}; name a .png or .npy file")
    require_place(output, image)
    if confidence:
        require_place(confidence_path(output), image)
    if overlay:
        require_place(overlay_path(output), image)
    with open_client(server, timeout_s=timeout_s, retries=retries, **access) as client:
        answer = client.segment(
            image,
            model=model,
            version=version,
            encoding=Encoding.PNG if suffix == ".png" else Encoding.ZSTD,
            heatmaps=heatmaps,
            regions=regions,
            confidence=confidence,
            overlay=overlay,
            classes=classes,
        )
    _write_heatmaps(answer, image, output)
    if regions:
        write_regions(regions_path(output), answer.regions, answer.class_map.shape)
    _write_answer(answer, output)
    _show(answer, output)
    if regions:
        show_regions(answer.regions)


def _write_answer(answer: "RemoteSegmentation", output: Path) -> None:
    """Write the mask, and confidence map and overlay where they were asked for."""
    import numpy as np

    from fcnseg import masks
    from fcnseg.files import replacing, write_bytes
    from fcnseg.pictures import confidence_path, overlay_path

    if answer.confidence is not None:
        write_bytes(confidence_path(output), masks.encode(answer.confidence, masks.Encoding.PNG, None))
    if answer.overlay is not None:
        write_bytes(overlay_path(output), answer.overlay)
    if output.suffix.lower() == ".png":
        write_bytes(output, answer.data)
    else:
        with replacing(output) as temporary, temporary.open("wb") as file:  # given a path, it may add a suffix
            np.save(file, answer.class_map)


def _write_heatmaps(answer: "RemoteSegmentation", image: Path, output: Path) -> None:
    if not answer.heatmaps or answer.grid is None:
        return
    from fcnseg import images, render
    from fcnseg.files import require_place
    from fcnseg.pictures import heatmap_path, require_drawable, write_jpeg

    photo = images.read(image)
    require_drawable(photo, image)
    for heatmap in answer.heatmaps:
        path = heatmap_path(output, heatmap.info)
        require_place(path, image)
        write_jpeg(path, render.heatmap(photo, heatmap.scores, answer.grid))


def _show(answer: "RemoteSegmentation", output: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fcnseg.files import shown

    height, width = answer.class_map.shape
    table = Table()
    table.add_column("id", justify="right")
    table.add_column("class")
    table.add_column("pixels", justify="right")
    table.add_column("share", justify="right")
    for area in sorted(answer.classes, key=lambda a: -a.pixels):
        table.add_row(str(area.id), escape(area.name), str(area.pixels), f"{area.fraction:.1%}")
    others = height * width - sum(area.pixels for area in answer.classes)
    if answer.other_id is not None and others:
        table.add_row(str(answer.other_id), "other classes", str(others), f"{others / (height * width):.1%}")
    spent = answer.timings
    click.echo(f"{answer.model_name} (version {answer.model_version}), {height}x{width} pixels (HxW)")
    Console().print(table)
    click.echo(
        f"decode {spent.decode_ms:.1f} ms, queue {spent.queue_ms:.1f} ms, infer {spent.infer_ms:.1f} ms, encode"
        f" {spent.encode_ms:.1f} ms; {spent.total_ms:.1f} ms in all"
    )
    click.echo(f"mask: {shown(output)}")

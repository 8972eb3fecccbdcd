"""`fcnseg segment`: masks for an image or any number of images."""

from contextlib import ExitStack
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
    tell_tuned,
    threads_option,
    tuned_option,
)

if TYPE_CHECKING:
    from fcnseg.folder.options import Tile
    from fcnseg.regions import RegionQuery

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
    from fcnseg.commands.segment_job import TileProgress, run_job
    from fcnseg.commands.segment_video import segment_video_file
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
            "a video takes no {}; for masks of its frames, give a folder of frames as INPUT and a folder as OUTPUT",
        )
        segment_video_file(
            Path(model), Path(source), output, device, threads, tuned=tuned, upright=not stored_orientation
        )
        return
    found = plan(source, output, options.mask_format)
    if found.mask_format is not options.mask_format:  # the name of a single image's mask says it
        refuse_given({"mask_format"}, "{} does not fit the suffix of OUTPUT; leave one of the two out")
    with ExitStack() as stack:
        tiles = TileProgress()
        if server is None:
            refuse_given(
                {"in_flight", "timeout_s", *access},
                "{} without a server; name one by --server, or leave it out",
            )
            segmenter, at_a_time = open_model(Path(model), device, threads, tuned=tuned, single=found.single)
            tell_tuned(Path(model), replace(segmenter.tuned, max_batch=None) if batch else segmenter.tuned)
            job = Job(LocalModel(segmenter, options, tiles.show, at_a_time), found, options)
        else:
            refuse_given(_OF_LOCAL_MODELS, "{} with --server, where the server decides that; leave it out")
            connections = min(in_flight, _MOST_CONNECTIONS)
            asking = open_client(server, timeout_s=timeout_s, connections=connections, **access)
            job = Job(ServerModel(stack.enter_context(asking), model, options), found, options)
        run_job(job, tiles)


def _read_tile(text: str) -> "Tile":
    if text == "auto":
        return "auto"
    if text == "none":
        return "none"
    if text.isascii() and text.isdecimal():
        return int(text)
    raise click.BadParameter(f"{text!r} is neither auto nor none nor a number of pixels", param_hint="--tile")

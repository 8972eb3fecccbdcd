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
    help="Format of the masks: indexed PNG, TIFF, NumPy array, or COCO JSON with run lengths (one file per image and"
    " one for all).",
)
@click.option(
    "--overlay",
    is_flag=True,
    help="Also write MASK.overlay.jpg: the image tinted in the classes' colours, with boxes if regions are requested.",
)
@click.option(
    "--confidence",
    is_flag=True,
    help="Also write MASK.confidence.png: the probability of each pixel's class, from 0 (black) to 1 (white).",
)
@click.option(
    "--heatmap",
    "heatmaps",
    metavar="CLASS",
    multiple=True,
    help="Also write MASK.heatmap-ID-NAME.jpg, which shows where this class (name or id) scores high. May be repeated.",
)
@click.option(
    "--top",
    metavar="N",
    default=0,
    type=click.IntRange(min=0),
    help="Also write heatmaps of the N classes with the highest probability anywhere in an image, and list them.",
)
@region_options
@click.option(
    "--overwrite/--skip-existing",
    help="Segment all images again, or only those that an earlier run did not finish.  [default: skip-existing]",
)
@click.option("--stored-orientation", is_flag=True, help="Do not rotate images by the orientation in their EXIF data.")
@click.option("--report/--no-report", default=True, help="Write report.html.  [default: report]")
@device_option
@threads_option("0; for many images two run at a time, with half of the cores each")
@tuned_option
@click.option(
    "--workers",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Threads that decode images, and as many again that write results; 0 uses one per core.",
)
@click.option(
    "--batch",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Most images of the same padded size per run; 0 uses the tuned number, else 1 on the CPU and 8 on CUDA.",
)
@click.option(
    "--tile",
    default="auto",
    show_default=True,
    metavar="auto|none|N",
    help="Segment large images in tiles of at most N x N pixels plus margins: the same mask with less memory. auto does"
    " so if a run would exceed --memory; none never does.",
)
@click.option(
    "--memory",
    "memory_mib",
    metavar="MIB",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="Memory limit in MiB for all images in progress, and again as much for runs of the model.",
)
@click.option(
    "--server",
    metavar="HOST:PORT",
    help="Have this server segment the images; MODEL is then the name of one of its models, or NAME/VERSION.",
)
@click.option(
    "--in-flight",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most requests to the server at a time.",
)
@click.option(
    "--timeout",
    "timeout_s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for each answer of the server, including retries.",
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
    """Segment INPUT with the model file MODEL, and write a mask for every image to OUTPUT.

    INPUT is an image, a folder (with its subfolders), a pattern such as 'photos/**/*.jpg', or a text file with one path
    per line. Subfolders are kept: the mask of INPUT/a/photo.jpg is OUTPUT/a/photo.png. OUTPUT also gets manifest.jsonl,
    with one line per image, and report.html. After Ctrl-C or a crash, the same command continues where it stopped. If
    an image fails, it is named, the others are still segmented, and the exit code is 1.

    If OUTPUT is a video file such as out.mp4, INPUT is a video, a folder of frames or a pattern such as
    frames/%05d.png. OUTPUT is then the overlay video, and out.manifest.jsonl beside it has one line per frame.

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

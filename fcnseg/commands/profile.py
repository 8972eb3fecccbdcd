"""`fcnseg profile`: what a frame costs, layer by layer."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnseg.commands.options import Size, device_option, threads_option, tuned_option

if TYPE_CHECKING:
    from fcnseg.profile import Profile
    from fcnseg.segmenter import Segmenter


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--size", type=Size(), default="480x640", show_default=True, help="Size of the images, in pixels.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1, 1024), help="Images per run.")
@threads_option()
@device_option
@click.option(
    "--runs", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Runs to take the median times of."
)
@click.option("--confidence", is_flag=True, help="Also compute the confidence map.")
@click.option(
    "--top",
    "shown",
    metavar="K",
    default=10,
    show_default=True,
    type=click.IntRange(min=0),
    help="How many of the most expensive nodes to list.",
)
@click.option(
    "--json",
    "json_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write the times of all nodes to this .json file.",
)
@tuned_option
def profile(
    *,
    model: Path,
    size: tuple[int, int],
    batch: int,
    threads: int | None,
    device: str,
    runs: int,
    confidence: bool,
    shown: int,
    json_path: Path | None,
    tuned: bool,
) -> None:
    """Measure the time that MODEL's net and the tail after its heatmap take, by groups of nodes and by node.

    Example: fcnseg profile model.onnx --size 360x480
    """
    from fcnseg import files

    if json_path is not None:
        files.require_report_place(json_path, ".json", model)
    if device != "cpu":  # else a node's time on CUDA is that of its launch; read when the driver starts
        os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
    from fcnseg.profile import profile as measure
    from fcnseg.sample_image import sample_image
    from fcnseg.segmenter import load

    segmenter = load(model, device, threads, tuned=tuned)
    height, width = size if segmenter.device == "cpu" else segmenter.info.geometry.canonical(*size)
    images = [sample_image(height, width, seed) for seed in range(batch)]
    found = measure(segmenter, images, runs, confidence=confidence)
    _show(found, segmenter, (height, width), batch, shown)
    if json_path is not None:
        setting = {
            "model": str(model),
            "device": segmenter.device,
            "threads": segmenter.engine.options.threads,
            "size": [height, width],
            "batch": batch,
            "confidence": confidence,
        }
        files.write_text(json_path, json.dumps({**setting, **found.as_json()}, indent=1) + "\n")
        click.echo(f"all nodes: {files.shown(json_path)}")


def _show(found: "Profile", segmenter: "Segmenter", size: tuple[int, int], batch: int, shown: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    threads = segmenter.engine.options.threads or "one per core"
    what = f"{batch} x {size[0]}x{size[1]} on {segmenter.device}, threads: {threads}, median of {found.runs} runs"
    click.echo(what)
    table = Table()
    for column in ("part", "group", "nodes", "ms", "share"):
        table.add_column(column, justify="left" if column in {"part", "group"} else "right")
    counts = Counter((node.tail, node.group) for node in found.nodes)
    for (tail, group), ms in found.groups().items():
        table.add_row("tail" if tail else "net", group, str(counts[tail, group]), f"{ms:.3f}", _share(ms, found))
    table.add_section()
    table.add_row("", "all", str(len(found.nodes)), f"{found.nodes_ms:.3f}", _share(found.nodes_ms, found))
    console.print(table)
    if shown:
        click.echo("the most expensive nodes")
        table = Table()
        table.add_column("node", overflow="fold")
        table.add_column("operator")
        for column in ("output", "ms", "share", "M MACs", "GFLOP/s"):
            table.add_column(column, justify="right")
        for node in sorted(found.nodes, key=lambda node: -node.ms)[:shown]:
            products = "" if node.multiply_adds is None else f"{node.multiply_adds / 1e6:.1f}"
            speed = "" if node.gflops is None else f"{node.gflops:.1f}"
            shape = "x".join(map(str, node.shape))
            table.add_row(
                escape(node.name), node.operator, shape, f"{node.ms:.3f}", _share(node.ms, found), products, speed
            )
        console.print(table)
    ratio = found.whole_over_net
    click.echo(
        f"tail: {found.tail_share:.1%} of the nodes' time"
        + (f"; the whole takes {ratio:.2f} times the net alone" if ratio else "")
    )
    click.echo(
        f"run with the profiler {found.profiled_ms:.2f} ms: nodes {found.nodes_ms:.2f} ms, between them"
        f" {found.between_ms:.2f} ms"
    )
    click.echo(f"run without it {found.run_ms:.2f} ms, the whole of Segmenter.segment {found.segment_ms:.2f} ms")
    if found.peak_bytes:
        click.echo(f"memory of a run at its peak {found.peak_bytes / 1e6:.1f} MB")


def _share(ms: float, found: "Profile") -> str:
    return f"{ms / found.nodes_ms:.1%}" if found.nodes_ms else ""

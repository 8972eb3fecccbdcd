"""What `fcnseg segment` does where its output is a video."""

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fcnseg.commands.options import tell_tuned
from fcnseg.errors import PartialFailureError
from fcnseg.files import require_place, shown
from fcnseg.frames import open_frames
from fcnseg.segmenter import load
from fcnseg.video import manifest_path, require_video_output, segment_video


def segment_video_file(
    model: Path, source: Path, output: Path, device: str, threads: int | None, *, tuned: bool, upright: bool
) -> None:
    """Segment a video or a sequence of images into an overlay video and a manifest of its frames."""
    require_video_output(output)
    require_place(output, source)
    frames = open_frames(source, upright=upright)
    segmenter = load(model, device, threads, tuned=tuned, pipeline=True)
    tell_tuned(model, replace(segmenter.tuned, max_batch=None))
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

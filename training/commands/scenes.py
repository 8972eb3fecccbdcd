"""`fcnseg scenes`: generate a small labelled data set."""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import track


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--train",
    "train_count",
    default=400,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of training scenes.",
)
@click.option(
    "--val", "val_count", default=40, show_default=True, type=click.IntRange(min=1), help="Number of validation scenes."
)
@click.option(
    "--size", default=128, show_default=True, type=click.IntRange(min=32), help="Longer side of a scene, in pixels."
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Random seed; the same seed gives the same bytes.",
)
def scenes(out: Path, train_count: int, val_count: int, size: int, seed: int) -> None:
    """Generate a labelled data set of textured shapes in the folder OUT.

    The shapes overlap, under noise and varying light; their colours and textures do not reveal their classes.

    \b
    Example: fcnseg scenes scenes/ && fcnseg train scenes/ --backbone timm/tf_efficientnet_lite0 -o run/
    """
    from training.scenes import CLASS_NAMES, write_scenes

    console = Console(stderr=True)
    counts = {"train": train_count, "val": val_count}
    written = write_scenes(out, counts, size=size, seed=seed)
    total = sum(counts.values())
    for _ in track(written, "drawing scenes", total, console=console, transient=True, disable=not console.is_terminal):
        pass
    click.echo(f"{out}: {train_count} training and {val_count} validation scenes of {', '.join(CLASS_NAMES)}")

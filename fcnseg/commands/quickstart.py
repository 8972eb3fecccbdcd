"""`fcnseg quickstart`: the main job from end to end on this machine."""

from pathlib import Path

import click


@click.command()
@click.option(
    "-o",
    "--output",
    default="quickstart",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for models, masks and pictures; results of an earlier quickstart there are replaced.",
)
def quickstart(output: Path) -> None:
    """Run fcnseg's commands from a pretrained classifier to a mask served over gRPC.

    First, the classifier EfficientNet-Lite0 is converted to a heatmap model, which finds a cat in a photograph. Then an
    FCN-8s is fine-tuned from it on generated scenes, exported, and served over gRPC; the served mask must equal the one
    computed offline byte for byte. Takes two to three minutes on two CPU cores.

    Example: fcnseg quickstart
    """
    from fcnseg.quickstart import run_quickstart

    run_quickstart(output)

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
    help="Folder for models, masks and pictures; what an earlier quickstart left there is replaced.",
)
def quickstart(output: Path) -> None:
    """Take a pretrained classifier to a mask over gRPC, by calling fcnseg's commands as a user would.

    First the classifier EfficientNet-Lite0 becomes a heatmap model that finds a cat in a photograph. Then an FCN-8s is
    fine-tuned from it on generated scenes, exported, and served over gRPC; the served mask must equal the offline one
    byte for byte. Takes two to three minutes on two CPU cores.

    Example: fcnseg quickstart
    """
    from fcnseg.quickstart import run_quickstart

    run_quickstart(output)

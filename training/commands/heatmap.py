"""`fcnseg heatmap`: a pretrained classifier becomes a heatmap model file, with no training."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from fcnseg.errors import UsageError
from training.commands.options import Channels, weights_options

if TYPE_CHECKING:
    from fcnseg.types import LabelMap
    from training.zoo import Classifier


@click.command()
@click.argument("arch")
@weights_options
@click.option(
    "--rule",
    type=click.Choice(["auto", "cam", "window"]),
    default="auto",
    show_default=True,
    help="What becomes of global pooling: dropped (cam), or a sliding window of its native size.",
)
@click.option(
    "--labels",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Class names, one a line in the order of ids.  [default: ImageNet's for 1000 classes]",
)
@click.option(
    "-o", "--output", required=True, metavar="MODEL.onnx", type=click.Path(path_type=Path), help="File to write."
)
def heatmap(
    arch: str,
    weights: Path | None,
    mean: Channels | None,
    std: Channels | None,
    rule: Literal["auto", "cam", "window"],
    labels: Path | None,
    output: Path,
) -> None:
    """Convert the classifier ARCH (a torchvision name, or timm/NAME) into a heatmap model file.

    Its fully connected layers become convolutions, so that it answers with a map of scores per class. Prints the
    certificate: which identity with the classifier holds, how closely, and the geometry derived from the net's graph.

    \b
    Example: fcnseg heatmap timm/tf_efficientnet_lite0 -o cat.onnx
    """
    from rich.console import Console
    from rich.table import Table

    from fcnseg.files import require_place
    from training.conversion import convolutionalize
    from training.export import export
    from training.grid import derive_net_grid
    from training.model import SegmentationModel
    from training.zoo import load_classifier

    require_place(output)
    console = Console(stderr=True)
    with console.status(f"loading {arch}"):
        classifier = load_classifier(arch, weights=weights, mean=mean, std=std)
    with console.status("converting and checking against the classifier"):
        net, certificate = convolutionalize(classifier.net, classifier.input_size, rule)
        net_grid = derive_net_grid(net, classifier.input_size)
        label_map = _label_map(labels, classifier, net_grid.channels)
        model = SegmentationModel(net, net_grid, classifier, "heatmap")
    with console.status("exporting and checking against onnxruntime"):
        info = export(model, label_map, output, certificate=certificate)
    table = Table("certificate", arch, title_justify="left")
    for row in certificate.rows():
        table.add_row(*row)
    table.add_row("onnxruntime with PyTorch", f"{info.parity[-1].relative_error:.1e} of the scores' range")
    table.add_row("weights", classifier.weights_source)
    table.add_row("normalisation", model.normalisation)
    Console().print(table)
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {len(label_map)} classes)")


def _label_map(path: Path | None, classifier: "Classifier", num_classes: int) -> "LabelMap":
    from fcnseg.types import LabelMap

    if path is None:
        return LabelMap.from_names(classifier.labels or [f"class {i}" for i in range(num_classes)])
    if not path.is_file():
        raise UsageError(f"labels file {path} does not exist; give a text file with one class name a line")
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != num_classes:
        raise UsageError(f"labels file {path} has {len(names)} names, but the classifier scores {num_classes} classes")
    return LabelMap.from_names(names)

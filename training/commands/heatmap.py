"""`fcnseg heatmap`: a pretrained classifier becomes a heatmap model file, with no training."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from fcnseg.errors import UsageError
from fcnseg.types import Rgb
from training.commands.options import MEAN_HELP, STD_HELP, WEIGHTS_HELP, read_channels, read_size

if TYPE_CHECKING:
    from fcnseg.types import LabelMap
    from training.zoo import Classifier


@click.command()
@click.argument("arch", metavar="ARCH|FILE.py:NAME")
@click.option("--weights", metavar="FILE", type=click.Path(path_type=Path), help=WEIGHTS_HELP)
@click.option("--mean", metavar="R,G,B", callback=read_channels, help=MEAN_HELP)
@click.option("--std", metavar="R,G,B", callback=read_channels, help=STD_HELP)
@click.option(
    "--input-size",
    metavar="PIXELS|HxW",
    callback=read_size,
    help="Native size of the classifier, which it was trained at, in pixels.  [default: the zoo's for ARCH; 224 for"
    " FILE.py]",
)
@click.option(
    "--rule",
    type=click.Choice(["auto", "cam", "window"]),
    default="auto",
    show_default=True,
    help="How to convert global average pooling: drop it (cam), or slide a window of its native size (window). auto"
    " takes cam if all that follows the pooling is affine, else window.",
)
@click.option(
    "--labels",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File of class names, one per line in the order of ids.  [default: ImageNet's for 1000 classes]",
)
@click.option(
    "-o", "--output", required=True, metavar="MODEL.onnx", type=click.Path(path_type=Path), help="Model file to write."
)
def heatmap(
    arch: str,
    weights: Path | None,
    mean: Rgb | None,
    std: Rgb | None,
    input_size: tuple[int, int] | None,
    rule: Literal["auto", "cam", "window"],
    labels: Path | None,
    output: Path,
) -> None:
    """Convert the classifier ARCH, a torchvision name or timm/NAME, into a heatmap model file.

    For a classifier of your own, give FILE.py:NAME: a Python file, which is executed, and the class or function in it
    that makes the net. It needs --mean and --std, and takes RGB images, or grey ones if its first layer has one
    channel.

    Fully connected layers become convolutions, so that the model outputs a map of scores per class. Prints the
    certificate: which identity with the classifier holds, with what error, and the geometry derived from the net's
    graph.

    \b
    Examples:
      fcnseg heatmap timm/tf_efficientnet_lite0 -o cat.onnx
      fcnseg heatmap lenet.py:LeNet --weights lenet.pth --input-size 32 --mean 0.5 --std 0.5 -o digits.onnx
    """
    from dataclasses import replace

    from rich.console import Console
    from rich.table import Table

    from fcnseg.files import require_model_place
    from training.conversion import convolutionalize
    from training.export import export
    from training.model import SegmentationModel
    from training.net_file import is_net_file
    from training.net_grid import derive_net_grid
    from training.tracing import input_channels
    from training.zoo import load_classifier

    require_model_place(output, weights, labels)
    if is_net_file(arch) and (mean is None or std is None):
        raise UsageError(
            f"the normalisation of {arch} is not known; give the --mean and --std that it was trained with, of values"
            " in 0..1 (--mean 0 --std 1 if images were only divided by 255)"
        )
    console = Console(stderr=True)
    with console.status(f"loading {arch}"):
        classifier = load_classifier(arch, weights=weights, mean=mean, std=std, input_size=input_size)
    with console.status("converting and checking against the classifier"):
        net, certificate = convolutionalize(classifier.net, classifier.input_size, rule)
        net_grid = derive_net_grid(net, classifier.input_size, input_channels(net, classifier.input_size))
        net_grid = replace(net_grid, global_context=certificate.global_context)  # the proof's findings among it
        model = SegmentationModel(net, net_grid, classifier, "heatmap")
        label_map = _label_map(labels, classifier, model.num_classes)
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
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # editors put a mark that nobody sees before it
    except UnicodeDecodeError as error:
        raise UsageError(f"labels file {path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != num_classes:
        raise UsageError(f"labels file {path} has {len(names)} names, but the classifier scores {num_classes} classes")
    return LabelMap.from_names(names)

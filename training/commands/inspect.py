"""`fcnseg inspect`: what each layer of a net does, and what a model file says of itself."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnseg.words import first_of
from training.commands.options import read_size

if TYPE_CHECKING:
    from fcnseg.geometry import Geometry
    from fcnseg.layers import Layer
    from fcnseg.model_file import ModelInfo

_PIPED_WIDTH = 200
_SHOWN = 5


@click.command()
@click.argument("source", metavar="ARCH|MODEL.onnx")
@click.option(
    "--input-size",
    metavar="PIXELS|HxW",
    callback=read_size,
    help="Native size of the classifier, which it was trained at, in pixels.  [default: the zoo's for ARCH; 224 for"
    " FILE.py]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the tables.")
def inspect(source: str, *, input_size: tuple[int, int] | None, as_json: bool) -> None:
    """Show the layers of a net with their shapes, strides and receptive fields, and its totals.

    ARCH is a classifier that 'fcnseg heatmap' takes, FILE.py:NAME for one of your own. It is shown as the heatmap net
    that it becomes, with random weights and without a download. A model file is shown with all its metadata, such as
    classes, proofs and metrics; this does not need torch. Shapes are those at the classifier's native size.

    \b
    The top-level keys of --json:
      parameters       number of the classifier's parameters with its auxiliary heads; of a trained model, of its net
      fc_share         share of these parameters that is in Linear layers, 0 to 1
      receptive_field, output_stride, alignment
                       of the last map, in pixels; the larger one if the axes differ (geometry has both)
      layers           objects with name, kind (conv, pool, fc, norm, activation or other), operation, was,
                       shape [C, h, w], stride [y, x], receptive_field [y, x], parameters, share
      architecture, geometry, global_context and, for a model file, the rest of its metadata

    \b
    Example: fcnseg inspect vgg16
             fcnseg inspect model.onnx --json | jq .receptive_field
    """
    path = Path(source)
    is_file = path.suffix == ".onnx" or (path.is_file() and path.suffix != ".py")
    if is_file and input_size is not None:
        raise click.UsageError(
            f"--input-size is for classifiers; the model file {path} states its own, so leave it out"
        )
    net = _open_model_file(path) if is_file else _open_architecture(source, input_size)
    if as_json:
        click.echo(json.dumps(net.document(), indent=1))
    else:
        _show(net)


@dataclass(frozen=True)
class _Inspected:
    """What there is to show of a net.

    Attributes:
        title: What was inspected.
        layers: The net's layers; empty where a model file does not tell them.
        parameters: What the total counts; None where it is not known.
        fc_parameters: Those in Linear layers; None where that is not known.
        geometry: The net's geometry.
        global_context: Modules through which a cell depends on the whole image.
        rows: What else there is to say, (what, value).
        metadata: What else the JSON document holds.
    """

    title: str
    layers: "tuple[Layer, ...]"
    parameters: int | None
    fc_parameters: int | None
    geometry: "Geometry"
    global_context: tuple[str, ...]
    rows: dict[str, str]
    metadata: dict[str, Any]

    @property
    def fc_share(self) -> float | None:
        """Share of the parameters in Linear layers, 0..1."""
        if self.fc_parameters is None or not self.parameters:
            return None
        return self.fc_parameters / self.parameters

    def share(self, layer: "Layer") -> float:
        """A layer's share of the net's parameters, 0..1."""
        return layer.parameters / max(1, sum(other.parameters for other in self.layers))

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        y, x = self.geometry.y, self.geometry.x
        return {
            "parameters": self.parameters,
            "fc_share": self.fc_share,
            "receptive_field": max(y.field, x.field),
            "output_stride": max(y.stride, x.stride),
            "alignment": max(y.alignment, x.alignment),
            **self.metadata,
            "geometry": asdict(self.geometry),
            "global_context": self.global_context,
            "layers": [asdict(layer) | {"share": self.share(layer)} for layer in self.layers],
        }

    def totals(self) -> Iterator[tuple[str, str]]:
        """The totals as (what, value) rows for a table."""
        from fcnseg.certificate import format_pair

        y, x = self.geometry.y, self.geometry.x
        if self.parameters is not None:
            yield "parameters", f"{self.parameters:,}"
        if self.fc_share is not None:
            yield "in FC layers", f"{self.fc_parameters:,} ({self.fc_share:.1%})"
        yield "receptive field", format_pair((y.field, x.field))
        yield "output stride", format_pair((y.stride, x.stride))
        yield "alignment", format_pair((y.alignment, x.alignment))
        yield "offset of cell 0", format_pair((y.offset, x.offset))
        yield "margin around a tile", format_pair((y.margin, x.margin))
        yield "smallest padded image", format_pair((y.minimum, x.minimum))
        context = f"yes: {len(self.global_context)} modules ({first_of(self.global_context, _SHOWN)})"
        yield "global context", context if self.global_context else "none"


def _open_architecture(name: str, input_size: tuple[int, int] | None = None) -> _Inspected:
    from rich.console import Console

    from fcnseg.certificate import format_pair
    from fcnseg.layers import count_parameters
    from training.conversion import dense_trunk, prepared_copy
    from training.layers import derive_layers
    from training.model import SegmentationModel
    from training.net_grid import derive_net_grid
    from training.proof import with_proved_reach
    from training.tracing import input_channels
    from training.zoo import load_classifier

    with Console(stderr=True).status(f"building {name}"):
        classifier = load_classifier(name, input_size=input_size, pretrained=False)
        size = classifier.input_size
        trunk = dense_trunk(prepared_copy(classifier.net, size), size, "auto")
        layers = derive_layers(trunk.net)
        channels = input_channels(trunk.net, size)
        net_grid = with_proved_reach(trunk.net, derive_net_grid(trunk.net, size, channels), channels)
        model = SegmentationModel(trunk.net, net_grid, classifier, "heatmap")
    parameters = sum(parameter.numel() for parameter in classifier.net.parameters())
    rows = {"native size": format_pair(size), "rule": trunk.identity}
    dropped = parameters - count_parameters(layers)
    if dropped:
        rows["in heads that are dropped"] = f"{dropped:,}"
    return _Inspected(
        title=name,
        layers=layers,
        parameters=parameters,
        fc_parameters=count_parameters(layers, "fc"),
        geometry=model.geometry,
        global_context=model.global_context,
        rows=rows,
        metadata={"architecture": name, "input_size": size, "rule": trunk.identity},
    )


def _open_model_file(path: Path) -> _Inspected:
    from fcnseg.layers import count_parameters
    from fcnseg.model_file import dump_info, read_model_info

    info = read_model_info(path)
    proved = info.certificate
    counted = (count_parameters(info.layers), count_parameters(info.layers, "fc")) if info.layers else (None, None)
    parameters, fc_parameters = (proved.parameters_before, proved.fc_parameters) if proved else counted
    return _Inspected(
        title=str(path),
        layers=info.layers,
        parameters=parameters,
        fc_parameters=fc_parameters,
        geometry=info.geometry,
        global_context=info.global_context,
        rows=dict(_file_rows(info)),
        metadata=json.loads(dump_info(info)),
    )


def _file_rows(info: "ModelInfo") -> Iterator[tuple[str, str]]:
    yield "architecture", f"{info.variant} of {info.architecture}"
    yield "classes", f"{len(info.label_map)}: {first_of([c.name for c in info.label_map.classes], _SHOWN)}"
    yield "class map", "taken at every pixel" if info.class_map_at == "pixel" else "taken at every cell, enlarged"
    yield "precision", info.precision
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (info.mean, info.std))
    yield "normalisation", f"mean {mean}, std {std}"
    if info.certificate is not None:
        yield from info.certificate.rows()
    for record in info.parity:
        yield record.compared, f"{record.relative_error:.1e} of the scores' range"
    for name, value in info.metrics.items():
        yield name, f"{value:.4f}"
    if info.data_fingerprint is not None:
        name = "" if info.card is None else f"{info.card.data}, "
        yield "training data", f"{name}{info.data_fingerprint[:12]}"
    if info.card is not None:
        yield "licence of the data", info.card.data_licence or "not told"
        yield "began from", info.card.weights
    yield "licence of the weights", info.licence or "not known"
    yield "made with", ", ".join(f"{package} {version}" for package, version in info.versions.items())


def _show(net: _Inspected) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from training.commands.layer_table import layer_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)  # nothing reads a pipe at 80 columns
    if net.layers:
        console.print(layer_table(net.layers, console))
        console.print()
    table = Table("net", escape(net.title))
    for what, value in (dict(net.totals()) | net.rows).items():
        table.add_row(what, Text(value))
    console.print(table)

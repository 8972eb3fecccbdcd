"""`fcnseg evaluate`: measure a model on a labelled split."""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from fcnseg.types import LabelMap
    from training.config import Device
    from training.evaluation import Predictor
    from training.metrics import Measures
    from training.report_page import Example
    from training.samples import Sample

_SCALES = "--scales"
_LARGEST_SCALE = 4.0
_EXAMPLES = 4


class _NumbersFollowScales(click.Command):
    """Lets the scales stand with spaces between them; click itself takes a fixed number of values to an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if _SCALES in args:
            first = args.index(_SCALES) + 1
            last = first
            while last < len(args) and _is_number(args[last]):
                last += 1
            if last > first:
                args = [*args[:first], ",".join(args[first:last]), *args[last:]]
        return super().parse_args(ctx, args)


def _read_scales(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[float, ...]:
    parts = value.split(",") if value is not None else []
    if not all(_is_number(part) and 0 < float(part) <= _LARGEST_SCALE for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of numbers above 0 and up to 4, such as 0.75 1.0 1.25")
    return tuple(float(part) for part in parts)


@click.command(cls=_NumbersFollowScales)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--split", default="val", show_default=True, help="Split of DATA to measure on.")
@click.option(
    "--json", "json_path", metavar="FILE", type=click.Path(path_type=Path), help="Write the metrics to this .json file."
)
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write an HTML report to this file: the metrics, the confusion matrix, and the best and worst images.",
)
@click.option(
    _SCALES,
    metavar="S ...",
    callback=_read_scales,
    help="Average the probabilities over these scales of each image; the server does not do this. Each scale costs a"
    " run of the net, whose time grows with the square of the scale (0.75 1.0 1.25: 3.1 times in all), and the"
    " average takes memory for a probability per class and pixel.",
)
@click.option(
    "--flip",
    is_flag=True,
    help="Also average over the mirrored image, with twice as many runs of the net; the server does not do this.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to run; auto takes a GPU if there is one.",
)
def evaluate(
    *,
    model: Path,
    data: Path,
    split: str,
    json_path: Path | None,
    report: Path | None,
    scales: tuple[float, ...],
    flip: bool,
    device: "Device",
) -> None:
    """Measure the accuracy of MODEL on the images and masks of the folder DATA.

    MODEL is a model file, run by the runtime that serves it, or a run folder or checkpoint of 'fcnseg train', run by
    PyTorch, to compare it with its export.

    Prints mean IoU, pixel accuracy, mean accuracy, frequency-weighted IoU, the IoU of each class, boundary IoU (within
    2 % of the image's diagonal) and the expected calibration error of the confidence (15 bins; with --scales or
    --flip, of the averaged probability). The means leave out classes that occur neither in the masks nor in the
    predictions.

    \b
    Example: fcnseg evaluate model.onnx camvid/ --split val --json scores.json --report scores.html
    """
    from rich.console import Console

    from fcnseg.errors import DatasetError
    from fcnseg.files import require_report_place, sha256_of, write_bytes, write_text
    from training.contents import check_samples, tell_no_label
    from training.data import open_dataset
    from training.evaluation import AveragedPredictor, extremes, open_predictor, require_same_classes
    from training.report import Subject, figures, to_json
    from training.report_page import to_html
    from training.run_folder import ENVIRONMENT

    for path, suffix in ((json_path, ".json"), (report, ".html")):
        if path is not None:
            require_report_place(path, suffix, model, model / ENVIRONMENT, data=data)
    console = Console(stderr=True)
    dataset = open_dataset(data, (split,))
    samples = dataset.split(split)
    net = open_predictor(model, device)
    label_map, ignore_id = net.label_map, dataset.label_map.ignore_id
    require_same_classes(label_map, dataset.label_map)
    if not sum(check_samples(samples, dataset.label_map).class_pixels):
        raise DatasetError(f"{tell_no_label(split, ignore_id)}; name a split that can be measured")
    if flip and not scales:
        scales = (1.0,)
    predictor = AveragedPredictor(net, scales, flip=flip) if scales else net
    subject = Subject(model, sha256_of(net.file), label_map, data, split, scales, flip)
    measures = _measure(console, predictor, samples, ignore_id)
    _print_measures(measures, label_map)
    found = figures(subject, measures)
    if report is not None:
        best, worst = (
            [_example(predictor, samples[i], measures, i) for i in chosen]
            for chosen in extremes(measures.images, _EXAMPLES)
        )
        write_bytes(report, to_html(found, label_map, best, worst, ignore_id))
    if json_path is not None:
        write_text(json_path, to_json(found))


def _measure(
    console: "Console", predictor: "Predictor", samples: "Sequence[Sample]", ignore_id: int | None
) -> "Measures":
    from rich.progress import track

    from training.evaluation import measure

    running = measure(predictor, samples, ignore_id)
    shown = track(running, "evaluating", len(samples), console=console, transient=True, disable=not console.is_terminal)
    (measures,) = deque(shown, maxlen=1)
    return measures


def _example(predictor: "Predictor", sample: "Sample", measures: "Measures", index: int) -> "Example":
    from training.report_page import Example
    from training.samples import read_sample

    image, mask = read_sample(sample)
    scores = measures.images[index]
    class_map = predictor.predict(image).class_map
    return Example(sample.name, scores.mean_iou, scores.pixel_accuracy, image, mask, class_map)


def _print_measures(measures: "Measures", label_map: "LabelMap") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("class", box=None)
    table.add_column("IoU", justify="right")
    for info, iou in zip(label_map.classes, measures.per_class_iou, strict=True):
        table.add_row(escape(info.name), "not present" if iou is None else f"{iou:.4f}")
    Console().print(table)
    error = measures.calibration_error
    click.echo(f"mean IoU {measures.mean_iou:.4f}, pixel accuracy {measures.pixel_accuracy:.4f}")
    click.echo(
        f"mean accuracy {measures.mean_accuracy:.4f}, frequency-weighted IoU {measures.frequency_weighted_iou:.4f},"
        f" boundary IoU {measures.boundary_iou:.4f}, calibration error {'none' if error is None else f'{error:.4f}'}"
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False

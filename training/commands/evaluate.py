"""`fcnseg evaluate`: measure a model on a labelled split."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from fcnseg.types import LabelMap
    from training.config import Device
    from training.data import Dataset
    from training.evaluation import Predictor
    from training.metrics import Scores


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--split", default="val", show_default=True, help="Which images of DATA.")
@click.option("--json", "json_path", metavar="FILE", type=click.Path(path_type=Path), help="Write the figures there.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def evaluate(model: Path, data: Path, split: str, json_path: Path | None, device: "Device") -> None:
    """Measure MODEL on the images and masks of the folder DATA: mean IoU, pixel accuracy, IoU of each class.

    MODEL is a model file, run through the runtime that serves it; or a run folder or checkpoint of 'fcnseg train',
    run through torch, to be compared with its export.

    \b
    Example: fcnseg evaluate model.onnx camvid/ --split val --json scores.json
    """
    from rich.console import Console

    from fcnseg.files import require_place, write_text
    from training.data import check_samples, open_dataset
    from training.evaluation import open_predictor, require_same_classes

    if json_path is not None:
        require_place(json_path)
    console = Console(stderr=True)
    dataset = open_dataset(data)
    samples = dataset.split(split)
    predictor = open_predictor(model, device)
    require_same_classes(predictor.label_map, dataset.label_map)
    check_samples(samples, dataset.label_map)
    scores = _measure(console, predictor, dataset, split)
    _print_scores(scores, dataset.label_map)
    if json_path is not None:
        figures = {
            "mean_iou": scores.mean_iou,
            "pixel_accuracy": scores.pixel_accuracy,
            "per_class_iou": _by_name(scores, dataset.label_map),
            "model": str(model),
            "data": str(data),
            "split": split,
            "images": len(samples),
        }
        write_text(json_path, json.dumps(figures, indent=1) + "\n")


def _measure(console: "Console", predictor: "Predictor", dataset: "Dataset", split: str) -> "Scores":
    from rich.progress import track

    from training.evaluation import measure

    samples = dataset.split(split)
    running = measure(predictor, samples, dataset.label_map.ignore_id)
    shown = track(running, "evaluating", len(samples), console=console, transient=True, disable=not console.is_terminal)
    *_, scores = shown
    return scores


def _by_name(scores: "Scores", label_map: "LabelMap") -> dict[str, float | None]:
    return {info.name: iou for info, iou in zip(label_map.classes, scores.per_class_iou, strict=True)}


def _print_scores(scores: "Scores", label_map: "LabelMap") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("class", box=None)
    table.add_column("IoU", justify="right")
    for name, iou in _by_name(scores, label_map).items():
        table.add_row(name, "not present" if iou is None else f"{iou:.4f}")
    Console().print(table)
    click.echo(f"mean IoU {scores.mean_iou:.4f}, pixel accuracy {scores.pixel_accuracy:.4f}")

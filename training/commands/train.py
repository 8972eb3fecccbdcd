"""`fcnseg train`: fine-tune a classifier per pixel."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnseg.commands.options import SectionedCommand
from fcnseg.errors import UsageError
from training.commands.train_options import config_options, given_options

if TYPE_CHECKING:
    from rich.console import Console

    from training.config import TrainConfig
    from training.doctor import Diagnosis


_SECTIONS = {
    "run": "Run",
    "backbone": "Net",
    "weights": "Classifier",
    "epochs": "Images",
    "optimiser": "Optimiser",
    "reduction": "Loss",
    "ema": "Weights",
    "seed": "Machine",
    "overwrite": "Existing run",
}


@click.command(cls=SectionedCommand, sections=_SECTIONS)
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "run", required=True, metavar="RUN", type=click.Path(path_type=Path), help="Run folder to write."
)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="YAML file of options, such as a run's config.yaml, which reproduces that run; other options override it.",
)
@config_options
@click.option("--overwrite", is_flag=True, help="Replace the run in the folder RUN.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue after the last epoch saved in RUN, with the same options and the same data, which may have moved."
    " Starts the run if none is saved.",
)
def train(
    data: Path | None, run: Path, config_path: Path | None, *, overwrite: bool, resume: bool, **options: Any
) -> None:
    """Fine-tune a classifier into a segmentation model on the images and masks of the folder DATA.

    \b
    DATA has one of these layouts:
      SegNet's CamVid  train/ trainannot/ val/ valannot/
      folders          images/ masks/, with or without train.txt val.txt
      PASCAL VOC       JPEGImages/ SegmentationClass/ ImageSets/Segmentation/
      Cityscapes       leftImg8bit/ gtFine/
      COCO             annotations/instances_train.json instances_val.json and
                       images; also CVAT's, Label Studio's and Roboflow's exports

    Masks are PNGs of class ids, palette indices or RGB colours. Where the layout does not define them, classes.json or
    CVAT's labelmap.txt does.

    \b
    Train:     fcnseg train camvid/ --backbone mobilenet_v2 --variant fcn8s -o run/
    Continue:  fcnseg train camvid/ --backbone mobilenet_v2 --variant fcn8s -o run/ --resume
    Reproduce: fcnseg train --config run/config.yaml -o again/
    """
    from rich.console import Console

    from fcnseg.only_one import only_one
    from training.contents import require_sound
    from training.data import fingerprint, open_dataset
    from training.doctor import examine, require_labels
    from training.recipes import resolve
    from training.run_folder import BEST, LAST, prepare_folder

    given = _asked_for(data, config_path, options)
    _require_sense(given, run, overwrite=overwrite, resume=resume)
    console = Console(stderr=True)
    dataset = open_dataset(Path(given["data"]), ("train", "val"))
    with console.status("checking images and masks"):
        diagnosis = examine(dataset, ("train", "val"))
        found = diagnosis.contents
        require_sound(diagnosis.faults, sum(len(dataset.split(split)) for split in found))
        require_labels(diagnosis)
        data_fingerprint = fingerprint(dataset, found)
    _print_data(console, diagnosis)
    config = resolve(given, found["train"].size)
    _require_batches(config, one_size=found["train"].one_size)

    # Torch is loaded when the data is known to be good.
    from training.device import resolve_device, resolve_precision
    from training.fit import fit
    from training.losses import balance_classes
    from training.run import can_resume, open_run
    from training.stages import build_for

    used = resolve_device(config.device)
    resolve_precision(config.precision, used)  # before an earlier run is taken out of the folder
    alone = only_one(run, "training")
    if resume:  # before what is there is read
        click.get_current_context().with_resource(alone)
    begun = open_run(run / LAST) if resume and can_resume(run, config, data_fingerprint) else None
    if begun is not None:
        model, start = begun.model, f"going on behind epoch {begun.record.epoch}"
    else:
        model = build_for(config, dataset.label_map)
        start = f"normalisation: {model.normalisation}"
        if not resume:
            click.get_current_context().with_resource(alone)
        prepare_folder(run, overwrite=overwrite, resume=resume)
    console.print(
        f"{start}\n"
        f"training {config.variant} on {config.backbone} ({config.recipe} recipe): {config.epochs} epochs,"
        f" {config.batch_size} {config.seen} a step, lr {config.lr:.3g}, {used}",
        highlight=False,
        soft_wrap=True,
    )
    class_weights = balance_classes(found["train"], config.class_weights)
    try:
        best = fit(
            model,
            dataset,
            data_fingerprint,
            config,
            run,
            console,
            class_weights=class_weights,
            after_epoch=None if begun is None else begun.record.epoch,
        )
    except (KeyboardInterrupt, SystemExit):
        console.print(f"training was interrupted; {_kept(run)}", highlight=False, soft_wrap=True)
        raise
    click.echo(
        f"best validation mIoU {best['mean_iou']:.4f}, pixel accuracy {best['pixel_accuracy']:.4f}: {run / BEST}"
    )
    click.echo(f"next: fcnseg export {run} -o model.onnx")


def _kept(run: Path) -> str:
    """What an interrupted run leaves."""
    from training.run_folder import LAST, METRICS

    if (run / METRICS).is_file():
        return f"{run / LAST} is kept; go on with --resume"
    if (run / LAST).is_file():
        return f"{run / LAST} has the weights of that moment; no epoch was finished, so --resume would begin anew"
    return "no step was finished"


def _refuse_several_processes() -> None:
    """Refuse to be one of the processes that torchrun starts, each of which would train into the same folder."""
    processes = os.environ.get("WORLD_SIZE", "")
    if processes.isdecimal() and int(processes) > 1:
        raise UsageError(
            f"training runs in one process on one device, and WORLD_SIZE is {processes}; start it without torchrun"
        )


def _require_sense(given: dict[str, Any], run: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse what can be told to be wrong before all images have been looked at, which may take minutes."""
    from training.recipes import LARGEST_CROP, resolve
    from training.run_folder import require_free

    _refuse_several_processes()
    require_free(run, overwrite=overwrite or resume)
    resolve(given, (LARGEST_CROP, LARGEST_CROP))
    if resume:  # these files may be gone
        return
    remedies = {"weights": "give the path of a state_dict (.pth)", "start": "name a run folder, or a checkpoint file"}
    for name, remedy in remedies.items():
        if (path := given.get(name)) is not None and not Path(path).exists():
            raise UsageError(f"--{name} {path} does not exist; {remedy}")


def _require_batches(config: "TrainConfig", *, one_size: bool) -> None:
    """Refuse batches of whole images whose sizes differ."""
    least, most = config.scale_jitter
    if config.crop is None and config.batch_size > 1 and not (one_size and least == most):
        why = "several sizes" if least == most else f"sizes drawn anew, as --scale-jitter {least:g} {most:g} asks for,"
        raise UsageError(
            f"whole images of {why} cannot share a batch of {config.batch_size}; give --crop HxW, or --batch-size 1, or"
            " images of one size and --scale-jitter 1 1"
        )


def _asked_for(data: Path | None, config_path: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options of the file, overridden by those of the command line."""
    from training.config import read_values

    given = given_options(options)
    if config_path is not None:
        if "recipe" in given:
            raise UsageError(
                "--recipe cannot be combined with --config, whose file already has a recipe's options; give one of them"
            )
        given = {**read_values(config_path), **given}
    if data is not None:
        given["data"] = str(data)
    for name, remedy in (("data", "name the data folder"), ("backbone", "give --backbone ARCH")):
        if not given.get(name):
            raise UsageError(f"{name} is missing: {remedy}, or a --config FILE that has it")
    if (given.get("mean") is None) != (given.get("std") is None):
        missing = "mean" if given.get("mean") is None else "std"
        raise UsageError(f"--{missing} is missing: a normalisation needs --mean and --std")
    return given


def _print_data(console: "Console", diagnosis: "Diagnosis") -> None:
    dataset, contents = diagnosis.dataset, diagnosis.contents["train"]
    labelled = max(1, sum(contents.class_pixels))
    shares = ", ".join(
        f"{info.name} {pixels / labelled:.1%}"
        for info, pixels in zip(dataset.label_map.classes, contents.class_pixels, strict=True)
    )
    lines = [
        f"{dataset.root}: " + ", ".join(f"{c.images} {split} images" for split, c in diagnosis.contents.items()),
        f"{len(dataset.label_map)} classes: {shares}",
    ]
    if dataset.note is not None:
        lines.insert(0, dataset.note)
    if contents.ignored_pixels:
        share = contents.ignored_pixels / (contents.ignored_pixels + labelled)
        lines.append(f"{share:.1%} of the training pixels have no label (id {dataset.label_map.ignore_id})")
    for finding in diagnosis.findings:
        more = (
            f" ({len(finding.messages) - 1} more: 'fcnseg check {dataset.root}')" if len(finding.messages) > 1 else ""
        )
        lines.append(f"warning: {finding.messages[0]}{more}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)

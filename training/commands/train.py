"""`fcnseg train`: fine-tune a classifier per pixel."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnseg.errors import UsageError
from fcnseg.types import Rgb
from training.commands.options import weights_options

if TYPE_CHECKING:
    from rich.console import Console

    from training.config import Device, Precision, Variant
    from training.data import Contents, Dataset

_LARGEST_CROP = 320
_CROP_STEP = 32


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--backbone", required=True, metavar="ARCH", help="torchvision name, or timm/NAME, of the classifier.")
@click.option(
    "--variant",
    type=click.Choice(["fcn8s", "fcn16s", "fcn32s"]),
    default="fcn8s",
    show_default=True,
    help="Stride of the finest scores: smaller is sharper.",
)
@click.option(
    "-o", "--output", "run", required=True, metavar="RUN", type=click.Path(path_type=Path), help="Run folder."
)
@weights_options
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--crop",
    type=click.IntRange(min=32),
    help=f"Pixels along a training crop.  [default: the images' median longer side, at most {_LARGEST_CROP}]",
)
@click.option(
    "--scale-jitter",
    nargs=2,
    default=(0.75, 1.5),
    show_default=True,
    metavar="LEAST GREATEST",
    help="Range of the factor by which an image is resized before it is cropped.",
)
@click.option("--lr", default=1e-2, show_default=True, help="Peak learning rate of the new layers.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--workers", default=0, show_default=True, type=click.IntRange(min=0), help="Processes that read data.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace the run that RUN holds.")
@click.option(
    "--resume", is_flag=True, help="Go on behind the last epoch that RUN holds, with the same options; else begin it."
)
def train(
    data: Path,
    backbone: str,
    variant: "Variant",
    run: Path,
    weights: Path | None,
    mean: Rgb | None,
    std: Rgb | None,
    epochs: int,
    batch_size: int,
    crop: int | None,
    scale_jitter: tuple[float, float],
    lr: float,
    seed: int,
    workers: int,
    device: "Device",
    precision: "Precision",
    *,
    overwrite: bool,
    resume: bool,
) -> None:
    """Fine-tune a classifier into a segmentation model on the images and masks of the folder DATA.

    \b
    DATA has one of these layouts:
      SegNet's CamVid  train/ trainannot/ val/ valannot/
      folders          images/ masks/, with or without train.txt val.txt
      PASCAL VOC       JPEGImages/ SegmentationClass/ ImageSets/Segmentation/
      Cityscapes       leftImg8bit/ gtFine/
      COCO             annotations/instances_train.json instances_val.json and
                       images; also CVAT's and Label Studio's COCO exports

    Masks are PNGs of ids, of palette indices, or of RGB colours; classes.json, or CVAT's labelmap.txt, says what they
    mean, where the layout does not.

    \b
    Example: fcnseg train camvid/ --backbone mobilenet_v2 --variant fcn8s -o run/
    """
    from rich.console import Console

    from training.config import TrainConfig
    from training.data import check_samples, fingerprint, open_dataset

    if (mean is None) != (std is None):
        raise UsageError(f"--{'mean' if std is None else 'std'} is missing: a normalisation needs --mean and --std")
    console = Console(stderr=True)
    dataset = open_dataset(data)
    with console.status("checking images and masks"):
        found = {split: check_samples(dataset.split(split), dataset.label_map) for split in ("train", "val")}
        data_fingerprint = fingerprint(dataset, found)
    _print_data(console, dataset, found)

    from training.device import resolve_device
    from training.fit import fit
    from training.model import build_model
    from training.run import BEST, LAST, can_resume, prepare_folder

    config = TrainConfig(
        data=str(data),
        backbone=backbone,
        variant=variant,
        weights=None if weights is None else str(weights),
        mean=mean,
        std=std,
        epochs=epochs,
        batch_size=batch_size,
        crop=crop or _default_crop(found["train"].longer_side),
        scale_jitter=scale_jitter,
        lr=lr,
        seed=seed,
        workers=workers,
        device=device,
        precision=precision,
    )
    used = resolve_device(device)
    model = build_model(backbone, variant, len(dataset.label_map), weights=weights, mean=mean, std=std)
    goes_on = resume and can_resume(run, config)
    if not goes_on:
        prepare_folder(run, overwrite=overwrite or resume)
    console.print(
        f"normalisation: {model.normalisation}\n"
        f"training {variant} on {backbone}: {epochs} epochs, {batch_size} crops of {config.crop} pixels a step, {used}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        best = fit(model, dataset, data_fingerprint, config, run, console, resume=goes_on)
    except (KeyboardInterrupt, SystemExit):
        kept = f"{run / LAST} is kept; go on with --resume" if (run / LAST).is_file() else "no step was finished"
        console.print(f"training was interrupted; {kept}", highlight=False, soft_wrap=True)
        raise
    click.echo(
        f"best validation mIoU {best['mean_iou']:.4f}, pixel accuracy {best['pixel_accuracy']:.4f}: {run / BEST}"
    )
    click.echo(f"next: fcnseg export {run} -o model.onnx")


def _default_crop(longer_side: int) -> int:
    """The images' usual size, in steps that no backbone has to pad."""
    return min(_LARGEST_CROP, -(-longer_side // _CROP_STEP) * _CROP_STEP)


def _print_data(console: "Console", dataset: "Dataset", found: "dict[str, Contents]") -> None:
    contents = found["train"]
    labelled = max(1, sum(contents.class_pixels))
    shares = ", ".join(
        f"{info.name} {pixels / labelled:.1%}"
        for info, pixels in zip(dataset.label_map.classes, contents.class_pixels, strict=True)
    )
    lines = [
        f"{dataset.root}: " + ", ".join(f"{c.images} {split} images" for split, c in found.items()),
        f"{len(dataset.label_map)} classes: {shares}",
    ]
    if dataset.note is not None:
        lines.insert(0, dataset.note)
    if contents.ignored_pixels:
        share = contents.ignored_pixels / (contents.ignored_pixels + labelled)
        lines.append(f"{share:.1%} of the training pixels have no label (id {dataset.label_map.ignore_id})")
    lines.extend(
        f"warning: no {split} mask has the class {info.name}"
        for split, c in found.items()
        for info, pixels in zip(dataset.label_map.classes, c.class_pixels, strict=True)
        if pixels == 0
    )
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)

"""The model card of a run: data, recipe and limits, as recorded in its checkpoint."""

import shlex
from pathlib import Path

from fcnseg.files import printable
from fcnseg.model_card import ModelCard, Option
from training.config import TrainConfig, as_plain
from training.export import Store
from training.net_file import without_folder
from training.precision import FilePrecision
from training.run import Run
from training.run_folder import LAST

_POOR = 0.5


def make_card(
    run: Run,
    file_name: str,
    *,
    data_licence: str | None = None,
    store: Store = "fp32",
    precision: FilePrecision = "fp32",
    calibration_images: int | None = None,
) -> ModelCard:
    """Make the card of a run's model.

    The card has file names without their folders, which are private to this machine.

    Args:
        run: The run.
        file_name: The name of the model file.
        data_licence: Licence of the training data; None if unknown.
        store: How the file stores the weights.
        precision: What the net computes with.
        calibration_images: Number of training images that 8-bit integers were calibrated with; None without any.
    """
    config = run.record.config
    data_licence = None if data_licence is None else printable(data_licence)
    exported = ["fcnseg", "export", f"run/{LAST}" if run.checkpoint.name == LAST else "run", "-o", file_name]
    if store != "fp32":
        exported += ["--store", store]
    if precision != "fp32":
        exported += ["--precision", precision]
    if calibration_images is not None:
        exported += ["--calibration-images", str(calibration_images)]
    if data_licence is not None:
        exported += ["--data-licence", data_licence]
    return ModelCard(
        data=_name(config.data),
        images=run.record.images,
        data_licence=data_licence,
        weights=_describe_weights(config),
        recipe=_recipe(config),
        epoch=run.record.epoch,
        class_iou=run.record.class_iou,
        limits=tuple(_limits(run, store, precision)),
        reproduce=(
            "fcnseg train --config config.yaml -o run",
            shlex.join(exported),
            shlex.join(["fcnseg", "evaluate", file_name, _name(config.data), "--split", "val"]),
        ),
    )


def _name(path: str) -> str:
    return printable(Path(path).name or path)  # the working folder `.` has no name


def _describe_weights(config: TrainConfig) -> str:
    if config.start is not None:
        return f"those of the run {_name(config.start)}"
    if config.weights is not None:
        return _name(config.weights)
    return f"pretrained weights of {printable(without_folder(config.backbone))}" if config.pretrained else "random"


def _recipe(config: TrainConfig) -> dict[str, Option]:
    """Return the run's options, with file names instead of paths."""
    plain = {**as_plain(config), "backbone": printable(without_folder(config.backbone))}
    for name in ("data", "weights", "start"):
        value = getattr(config, name)
        plain[name] = None if value is None else _name(value)
    return plain


def _limits(run: Run, store: Store, precision: FilePrecision) -> list[str]:
    record, config = run.record, run.record.config
    low, high = config.scale_jitter
    seen = config.seen if config.crop is None else f"{config.seen} (height x width)"
    limits = [
        "It knows its classes alone, and gives every pixel one of them, whatever the image shows.",
        f"It has seen {seen}, of images scaled by {low:g} to {high:g}; what appears much larger or smaller is untried.",
    ]
    if record.metrics:
        limits.append(
            "The validation images chose the epoch, so that these figures are somewhat too high for new images, and"
            " more so for other cameras and places."
        )
    poor = [f"{name} ({iou:.2f})" for name, iou in record.class_iou.items() if iou is not None and iou < _POOR]
    if poor:
        limits.append(f"Classes with a validation IoU below {_POOR}: {', '.join(poor)}.")
    unseen = [name for name, iou in record.class_iou.items() if iou is None]
    if unseen:
        limits.append(f"Classes that were not measured, since no validation image shows them: {', '.join(unseen)}.")
    if run.model.global_context:
        limits.append("Each answer depends on the whole image: tiles of an image do not give its answer exactly.")
    if store == "fp16":
        limits.append("Its weights are rounded to 16 bits; the figures above were measured before that.")
    if precision != "fp32":
        limits.append(f"It computes in {precision}; the tables above were measured in fp32.")
    return limits

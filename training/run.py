"""Reads the model of a training run from its checkpoint.

A checkpoint is a Lightning checkpoint of plain types (it opens with `torch.load(..., weights_only=True)`) whose entry
`fcnseg` holds all that is needed to rebuild the model, without a weights file, data folder or network; only a
classifier of one's own also needs its FILE.py.
"""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcnseg.errors import ModelFileError, UsageError, one_line
from fcnseg.types import LabelMap, Rgb
from training.config import TrainConfig, as_plain, from_plain, read_config
from training.model import SegmentationModel, build_model
from training.run_folder import BEST, CONFIG, ENVIRONMENT, LAST, METRICS, UNTOLD, data_begun_on

RECORD_KEY = "fcnseg"
MODEL_PREFIX = "model."
"""The prefix of the model's tensors in a checkpoint's `state_dict`."""
_FORMAT = 1


@dataclass(frozen=True)
class RunRecord:
    """The metadata of a checkpoint.

    Attributes:
        config: The run's options.
        label_map: The model's classes.
        mean: Channel means of the normalisation, of values in 0..1.
        std: Standard deviations of the channels.
        data_fingerprint: SHA-256 of the training and validation data.
        classifier_classes: Number of the classifier's classes; None for the zoo's number.
        epoch: Epochs completed; 0 before the end of the first.
        images: Number of images in the training and in the validation split.
        metrics: `mean_iou`, `pixel_accuracy`, `mean_accuracy` and `frequency_weighted_iou` of these weights on the
            validation split; empty if they were not measured, before the first epoch's end or at an interrupt.
        class_iou: Validation IoU of each class by name, None for classes that do not occur; empty if `metrics` is.
    """

    config: TrainConfig
    label_map: LabelMap
    mean: Rgb
    std: Rgb
    data_fingerprint: str
    classifier_classes: int | None = None
    epoch: int = 0
    images: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    class_iou: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model with its metadata.

    Attributes:
        checkpoint: The file that the model was loaded from.
        model: The model in evaluation mode, on the CPU.
        record: The checkpoint's metadata.
    """

    checkpoint: Path
    model: SegmentationModel
    record: RunRecord


class Checkpoint(NamedTuple):
    """A checkpoint's content.

    Attributes:
        path: The file.
        record: Its metadata.
        weights: The model's `state_dict`.
    """

    path: Path
    record: RunRecord
    weights: dict[str, Tensor]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint of a run, without building its model.

    Args:
        path: A run folder (its best checkpoint, or the last one if no epoch was finished) or a checkpoint file.

    Raises:
        UsageError: There is no checkpoint.
        ModelFileError: The file is not a checkpoint of `fcnseg train`.
    """
    checkpoint = find_checkpoint(path)
    refusal = f"{checkpoint} is not a checkpoint of 'fcnseg train'"
    foreign = f"{refusal}; name a run folder, or a .ckpt file of one"
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(foreign) from error
    if not isinstance(content, dict) or RECORD_KEY not in content or not isinstance(content.get("state_dict"), dict):
        raise ModelFileError(foreign)
    try:
        record = record_from_plain(content[RECORD_KEY])
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise ModelFileError(f"{refusal} of this version ({error!r}); train again with this one") from error
    weights = {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in content["state_dict"].items()}
    return Checkpoint(checkpoint, record, weights)


def open_run(path: Path) -> Run:
    """Rebuild the model of a run.

    Args:
        path: As for `read_checkpoint`.

    Raises:
        UsageError: There is no checkpoint.
        ModelFileError: The file is not a checkpoint of `fcnseg train`.
    """
    checkpoint, record, weights = read_checkpoint(path)
    model = build_model(
        record.config.backbone,
        record.config.variant,
        len(record.label_map),
        tail=record.config.tail,
        upsampling=record.config.upsampling,
        skip_scale=record.config.skip_scale,
        mean=record.mean,
        std=record.std,
        input_size=record.config.input_size,
        classifier_classes=record.classifier_classes,
        pretrained=False,
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = one_line(error, 200)
        raise ModelFileError(
            f"{checkpoint} is not a checkpoint of 'fcnseg train' of this version ({reason}); train again"
        ) from error
    if record.config.weights is not None or record.config.start is not None or not record.config.pretrained:
        model.licence = None  # the licence is of the zoo's weights, which were not used
    return Run(checkpoint, model.eval(), record)


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint file for the path of a run folder or checkpoint.

    Raises:
        UsageError: There is no checkpoint.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise UsageError(
            f"{path} does not exist; name a run folder made by 'fcnseg train -o RUN', or a checkpoint file"
        )
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise UsageError(f"{path} holds neither {BEST} nor {LAST}; name a run folder made by 'fcnseg train -o RUN'")


def can_resume(folder: Path, config: TrainConfig, data_fingerprint: str) -> bool:
    """Whether a folder holds a finished epoch of a run that can be continued with this configuration on this data.

    Raises:
        UsageError: It holds a run with another configuration, or on other data, or an incomplete one.
    """
    missing = [name for name in (CONFIG, METRICS, LAST) if not (folder / name).is_file()]
    if missing:
        if (folder / BEST).is_file():
            raise UsageError(
                f"the run in {folder} cannot go on without its {missing[0]}; name another folder, or begin it anew with"
                " --overwrite"
            )
        return False
    begun = read_config(folder / CONFIG)
    for name, value in as_plain(begun).items():
        asked = as_plain(config)[name]
        if asked != value and name not in {"device", "workers", "data"}:  # the fingerprint identifies the data
            raise UsageError(
                f"the run in {folder} was begun with {name} {value}, and {asked} was asked for; resume it with the same"
                " options, or name another folder"
            )
    try:
        begun_on = data_begun_on(folder)
    except UNTOLD as error:
        raise UsageError(
            f"{folder / ENVIRONMENT} does not tell what data the run was begun on ({error!r}); begin it anew in another"
            " folder"
        ) from error
    if begun_on != data_fingerprint:
        raise UsageError(
            f"the run in {folder} was begun on other data: its images, masks or classes have changed since; put them"
            " back as they were, or name another folder"
        )
    return True


def record_as_plain(record: RunRecord) -> dict[str, Any]:
    """Return a record as values of plain types."""
    return {
        "format": _FORMAT,
        "config": as_plain(record.config),
        "names": [info.name for info in record.label_map.classes],
        "colours": [list(info.colour) for info in record.label_map.classes],
        "ignore_id": record.label_map.ignore_id,
        "mean": list(record.mean),
        "std": list(record.std),
        "data_fingerprint": record.data_fingerprint,
        "classifier_classes": record.classifier_classes,
        "epoch": record.epoch,
        "images": dict(record.images),
        "metrics": dict(record.metrics),
        "class_iou": dict(record.class_iou),
    }


def record_from_plain(plain: dict[str, Any]) -> RunRecord:
    """Rebuild a record from the result of `record_as_plain`.

    Raises:
        KeyError, TypeError, ValueError, UsageError: The values are not such a record, or have another format.
    """
    if plain["format"] != _FORMAT:
        raise ValueError(f"format {plain['format']}")
    colours = [(int(r), int(g), int(b)) for r, g, b in plain["colours"]]
    mean, std = plain["mean"], plain["std"]
    return RunRecord(
        config=from_plain(plain["config"]),
        label_map=LabelMap.from_names(plain["names"], colours, plain["ignore_id"]),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        data_fingerprint=plain["data_fingerprint"],
        classifier_classes=plain.get("classifier_classes"),
        epoch=plain["epoch"],
        images=plain.get("images", {}),
        metrics=plain["metrics"],
        class_iou=plain.get("class_iou", {}),
    )

"""The model card: where a model comes from and what it can be trusted with, as JSON in its file and as Markdown.

The headings follow Mitchell et al., Model Cards for Model Reporting (arXiv 1810.03993).
"""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

if TYPE_CHECKING:
    from fcnseg.model_file import ModelInfo

Option: TypeAlias = str | bool | int | float | list[float] | None


@dataclass(frozen=True)
class PrecisionRecord:
    """The effect of a precision below 32-bit floats on a model, measured on the machine that exported it.

    Attributes:
        images: Number of validation images.
        mean_iou: Mean IoU of the file on these images, 0 to 1.
        fp32_mean_iou: Mean IoU of the same model in 32 bits.
        speedup: Time of a run in 32 bits divided by that of the file, on the first image.
        device: The device on which both ran: `cpu` or `cuda:N`.
    """

    images: int
    mean_iou: Annotated[float, Field(ge=0, le=1)]
    fp32_mean_iou: Annotated[float, Field(ge=0, le=1)]
    speedup: Annotated[float, Field(gt=0)]
    device: str


@dataclass(frozen=True)
class ModelCard:
    """Information on a model's training that is not in the other metadata of its file.

    Attributes:
        data: Name of the data set.
        images: Number of images of each split that training used.
        data_licence: Licence of the data; None if not stated.
        weights: What the training started from.
        recipe: The options of the run, by the names that `fcnseg train --config` takes.
        epoch: The epoch whose weights these are.
        class_iou: Validation IoU of each class by name; None for classes that occur nowhere; empty if not measured.
        limits: What the model should not be trusted with, a sentence each.
        reproduce: Commands that reproduce the model, given `recipe` as config.yaml.
        precision: The effect of reduced precision; None if the model computes with 32-bit floats.
    """

    data: str
    images: dict[str, int]
    data_licence: str | None
    weights: str
    recipe: dict[str, Option]
    epoch: int
    class_iou: dict[str, Annotated[float, Field(ge=0, le=1)] | None] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    reproduce: tuple[str, ...] = ()
    precision: PrecisionRecord | None = None


def to_markdown(info: "ModelInfo", card: ModelCard, name: str) -> str:
    """Write a model's card for people.

    Args:
        info: The model file's metadata.
        card: Its card.
        name: The model's name.
    """
    names = ", ".join(found.name for found in info.label_map.classes)
    about = (
        f"{info.variant} of {info.architecture}, {len(info.label_map)} classes: {names}. It takes RGB images of any"
        " size, and answers with a class for every pixel."
    )
    recipe = "".join(f"{option}: {json.dumps(value)}\n" for option, value in card.recipe.items())
    sections = {
        "Data": _data(info, card),
        "Metrics": _metrics(info, card),
        "Limits": "\n".join(f"- {limit}" for limit in card.limits),
        "Licence": _licence(info, card),
        "Recipe": f"```yaml\n{recipe}```",
        "How to reproduce": _reproduce(info, card),
    }
    parts = [f"# {name}", about, *(f"## {title}\n\n{text}" for title, text in sections.items())]
    return "\n\n".join(parts) + "\n"


def describe_precision(precision: str, record: PrecisionRecord) -> str:
    """Describe in a sentence the effect of reduced precision on a model."""
    return (
        f"Computed in {precision}: on {record.images} validation images mean IoU {record.mean_iou:.4f}, in fp32"
        f" {record.fp32_mean_iou:.4f} ({record.mean_iou - record.fp32_mean_iou:+.4f}); {record.speedup:.2f} times as"
        f" fast as fp32 on the {record.device} it was exported on."
    )


def _data(info: "ModelInfo", card: ModelCard) -> str:
    counts = ", ".join(f"{count} images for {split}" for split, count in card.images.items())
    return f"{card.data}: {counts}. SHA-256 of labels, images and masks: `{info.data_fingerprint}`."


def _metrics(info: "ModelInfo", card: ModelCard) -> str:
    if info.metrics:
        lines = ["On the validation split:", "", "| metric | value |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} | {value:.4f} |" for key, value in info.metrics.items()]
    else:
        lines = ["Not measured: training was interrupted before its first validation."]
    if card.class_iou:
        lines += ["", "| class | IoU |", "|---|---|"]
        lines += [
            f"| {key} | {'not present' if iou is None else f'{iou:.4f}'} |" for key, iou in card.class_iou.items()
        ]
    if card.precision is not None:
        lines += ["", describe_precision(info.precision, card.precision)]
    return "\n".join(lines)


def _licence(info: "ModelInfo", card: ModelCard) -> str:
    return (
        f"- Weights that training started from ({card.weights}): {info.licence or 'not known'}\n"
        f"- Training data ({card.data}): {card.data_licence or 'not told; find out before you share the model'}"
    )


def _reproduce(info: "ModelInfo", card: ModelCard) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in info.versions.items())
    commands = "\n".join(f"    {command}" for command in card.reproduce)
    return f"With the recipe above as `config.yaml`:\n\n{commands}\n\nMade with {versions}."

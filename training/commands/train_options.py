"""The options of `fcnseg train`: one for each of `TrainConfig`, none of which has a value unless it is given."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import click

from fcnseg.commands.options import Command, add_options
from training import config
from training.commands.options import MEAN_HELP, STD_HELP, WEIGHTS_HELP, read_channels, read_size
from training.config import TrainConfig

_DEFAULTS = {field.name: field.default for field in fields(TrainConfig) if field.default is not MISSING}
_POSITIVE = click.FloatRange(min=0, min_open=True)
_NOT_NEGATIVE = click.FloatRange(min=0)
_SHARE = click.FloatRange(min=0, max=1)


def config_options(command: Command) -> Command:
    """Add an option for each of `TrainConfig` but `data`; one that is not given is None."""
    return add_options(command, *_options())


def _options() -> list[Callable[[Any], Any]]:
    return [
        _text("backbone", "torchvision name, timm/NAME or FILE.py:NAME of the classifier.", metavar="ARCH"),
        _choice("recipe", config.RecipeName, "Where all other defaults come from; those shown are the modern ones."),
        _choice("variant", config.Variant, "Stride of the finest scores: smaller is sharper."),
        _choice(
            "tail", config.TailChoice, "What the coarsest scores read: FC layers, last features, or what there is."
        ),
        _choice("upsampling", config.Upsampling, "From coarse scores to finer ones."),
        _number("skip_scale", _POSITIVE, "What a skip's features are multiplied by, the second's twice."),
        _text("start", "Run of a coarser variant to start from, instead of the classifier.", metavar="RUN"),
        _text("weights", WEIGHTS_HELP, metavar="FILE"),
        _flag("pretrained", "Keep the classifier's weights, or draw them at random, as FILE.py may have done."),
        _channels("mean", MEAN_HELP),
        _channels("std", STD_HELP),
        click.option(
            "--input-size",
            metavar="HxW",
            callback=read_size,
            help="Native size of the classifier, for one of your own.  [default: the zoo's; 224 for FILE.py]",
        ),
        _number("epochs", click.IntRange(min=1), "Passes over the training images."),
        _number("batch_size", click.IntRange(min=1), "Images a step."),
        click.option(
            "--crop",
            metavar="HxW|whole",
            callback=_read_crop,
            help="Pixels of a training crop, or whole images.  [default: a square of the images' longer side, at most"
            " 320]",
        ),
        click.option(
            "--scale-jitter",
            nargs=2,
            type=_POSITIVE,
            metavar="LEAST GREATEST",
            help=f"Range of the factor by which an image is resized before it is cropped.{_shown('scale_jitter')}",
        ),
        _flag("flip", "Mirror half of the images."),
        _number("colour_jitter", _SHARE, "Largest relative change of brightness, contrast and saturation."),
        _choice("optimiser", config.Optimiser, "Stochastic gradient descent, or AdamW."),
        _number("lr", _POSITIVE, "Peak learning rate of the new layers."),
        _number("backbone_lr_factor", _NOT_NEGATIVE, "What it is multiplied by for pretrained layers."),
        _number("bias_lr_factor", _NOT_NEGATIVE, "What it is multiplied by for biases."),
        _number("momentum", click.FloatRange(min=0, max=1, max_open=True), "Of sgd."),
        _number("weight_decay", _NOT_NEGATIVE, "On weights; biases and normalisation layers have none."),
        _choice("schedule", config.Schedule, "How the rate falls from its peak."),
        _number("warmup", _SHARE, "Share of the steps over which the rate climbs to its peak."),
        _choice("reduction", config.Reduction, "Of the cross-entropy over the labelled pixels."),
        _choice("class_weights", config.ClassWeights, "Weigh classes by median frequency balancing, or its root."),
        _number("ohem", _SHARE, "Share of the pixels that count, those with the highest loss."),
        _number("dice", _NOT_NEGATIVE, "Weight of the Dice loss beside the cross-entropy."),
        _number("lovasz", _NOT_NEGATIVE, "Weight of the Lovász-softmax loss beside the cross-entropy; slow."),
        _number("ema", _SHARE, "Decay of the weights' moving average, which is validated and kept; 0 for none."),
        _flag("freeze_statistics", "Keep BatchNorm's means and variances as the classifier has them."),
        _number("seed", click.IntRange(min=0, max=config.LARGEST_SEED), "Of everything random."),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            help="Processes that read data.  [default: 0 on the CPU; on CUDA one a core, at most 8]",
        ),
        _choice("device", config.Device, "Where to train."),
        _choice("precision", config.Precision, "Of the training steps."),
        _flag("compile", "Let torch.compile make code for the training step: a minute or two first, then faster."),
    ]


def _number(name: str, kind: click.ParamType[Any], text: str) -> Callable[[Any], Any]:
    return click.option(_spelled(name), type=kind, help=text + _shown(name))


def _choice(name: str, choices: Any, text: str) -> Callable[[Any], Any]:
    return click.option(_spelled(name), type=click.Choice(get_args(choices)), help=text + _shown(name))


def _flag(name: str, text: str) -> Callable[[Any], Any]:
    off = _spelled(name).replace("--", "--no-", 1)
    shown = f"  [default: {_spelled(name) if _DEFAULTS[name] else off}]"
    return click.option(f"{_spelled(name)}/{off}", default=None, help=text + shown)


def _text(name: str, text: str, metavar: str) -> Callable[[Any], Any]:
    return click.option(_spelled(name), metavar=metavar, help=text)


def _channels(name: str, text: str) -> Callable[[Any], Any]:
    return click.option(_spelled(name), metavar="R,G,B", callback=read_channels, help=text)


def _read_crop(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | str | None:
    return value if value == "whole" else read_size(context, parameter, value)


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(name: str) -> str:
    value = _DEFAULTS[name]
    return f"  [default: {' '.join(str(v) for v in value) if isinstance(value, tuple) else value}]"


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, as `TrainConfig` has them."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("crop") == "whole":
        given["crop"] = None
    return given

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
_POSITIVE_SHARE = click.FloatRange(min=0, min_open=True, max=1)
_BELOW_ONE = click.FloatRange(min=0, max=1, max_open=True)


def config_options(command: Command) -> Command:
    """Add an option for each of `TrainConfig` but `data`; one that is not given is None."""
    return add_options(command, *_options())


def _options() -> list[Callable[[Any], Any]]:
    return [
        _text("backbone", "Classifier to start from: a torchvision name, timm/NAME or FILE.py:NAME.", metavar="ARCH"),
        _choice("recipe", config.RecipeName, "Source of all other defaults; those shown here are the modern ones."),
        _choice(
            "variant", config.Variant, "Stride of the finest scores: 32, 16 or 8 pixels; a smaller one is sharper."
        ),
        _choice(
            "tail",
            config.TailChoice,
            "Input of the coarsest scores: the fully connected layers as convolutions (fc), the last feature map (gap),"
            " or whatever stands before the last layer (auto).",
        ),
        _choice(
            "upsampling",
            config.Upsampling,
            "How coarse scores are upsampled to finer ones: bilinear, or by learned transposed convolutions.",
        ),
        _number("skip_scale", _POSITIVE, "Factor on the features of the first skip; the second has its square."),
        _text("start", "Run of a coarser variant to start from instead of the classifier.", metavar="RUN"),
        _text("weights", WEIGHTS_HELP, metavar="FILE"),
        _flag(
            "pretrained", "Start from trained weights, or from random ones; for FILE.py, say which of them it makes."
        ),
        _channels("mean", MEAN_HELP),
        _channels("std", STD_HELP),
        click.option(
            "--input-size",
            metavar="HxW",
            callback=read_size,
            help="Native size of the classifier, which it was trained at, in pixels.  [default: the zoo's for ARCH; 224"
            " for FILE.py]",
        ),
        _number("epochs", click.IntRange(min=1), "Passes over the training images."),
        _number("batch_size", click.IntRange(min=1), "Images per training step."),
        click.option(
            "--crop",
            metavar="HxW|whole",
            callback=_read_crop,
            help="Size of the training crops, in pixels, or whole for whole images.  [default: a square of the images'"
            " longer side, at most 320]",
        ),
        click.option(
            "--scale-jitter",
            nargs=2,
            type=_POSITIVE,
            metavar="LEAST GREATEST",
            help=f"Range of the random factor by which an image is resized before cropping.{_shown('scale_jitter')}",
        ),
        _flag("flip", "Mirror half of the images, left to right."),
        _number("colour_jitter", _SHARE, "Largest random change of brightness, contrast and saturation, relative."),
        _choice("optimiser", config.Optimiser, "AdamW, or stochastic gradient descent."),
        _number("lr", _POSITIVE, "Peak learning rate of the new layers."),
        _number("backbone_lr_factor", _NOT_NEGATIVE, "Factor on the learning rate of pretrained layers."),
        _number("bias_lr_factor", _NOT_NEGATIVE, "Factor on the learning rate of biases."),
        _number("momentum", _BELOW_ONE, "Momentum of sgd."),
        _number("weight_decay", _NOT_NEGATIVE, "Weight decay; biases and normalisation layers have none."),
        _choice("schedule", config.Schedule, "How the learning rate falls from its peak."),
        _number("warmup", _SHARE, "Share of the steps over which the learning rate climbs to its peak."),
        _choice(
            "reduction", config.Reduction, "Whether the cross-entropy is the mean or the sum over the labelled pixels."
        ),
        _choice(
            "class_weights",
            config.ClassWeights,
            "Class weights of the cross-entropy: none, median frequency balancing, or its root.",
        ),
        _number(
            "ohem",
            _POSITIVE_SHARE,
            "Share of the labelled pixels that the cross-entropy counts, those with the highest loss.",
        ),
        _number("dice", _NOT_NEGATIVE, "Weight of the Dice loss, added to the cross-entropy."),
        _number("lovasz", _NOT_NEGATIVE, "Weight of the Lovász-softmax loss, added to the cross-entropy; slow."),
        _number(
            "ema",
            _BELOW_ONE,
            "Decay of the moving average of the weights, which is validated and saved; 0 for no averaging.",
        ),
        _flag("freeze_statistics", "Keep the means and variances of the classifier's BatchNorm layers."),
        _number("seed", click.IntRange(min=0, max=config.LARGEST_SEED), "Random seed."),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            help="Processes that load data; 0 loads it in the training process.  [default: 0 on the CPU; on CUDA one"
            " per core, at most 8]",
        ),
        _choice("device", config.Device, "Where to run; auto takes a GPU if there is one."),
        _choice(
            "precision",
            config.Precision,
            "Number format of the training steps; auto: bf16 on CUDA, fp16 on older devices, fp32 on the CPU.",
        ),
        _flag("compile", "Compile the training step by torch.compile: slow for the first minute or two, then faster."),
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

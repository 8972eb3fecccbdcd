"""Options that more than one command of the training package takes."""

import math

import click

from fcnseg.types import Rgb

WEIGHTS_HELP = "File with the classifier's state_dict.  [default: the zoo's pretrained weights]"
MEAN_HELP = (
    "Means by which the channels, with values in 0..1, were normalised when the weights were trained; one number stands"
    " for all three.  [default: the zoo's for ARCH]"
)
STD_HELP = "Standard deviations of the same normalisation; given like --mean.  [default: the zoo's for ARCH]"


def read_size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read HEIGHTxWIDTH, or one number that stands for both."""
    if value is None:
        return None
    parts = value.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) > 2:
        raise click.BadParameter(f"{value!r} is neither one number of pixels nor HEIGHTxWIDTH, such as 224 or 192x256")
    return int(parts[0]), int(parts[-1])


def read_channels(_context: click.Context, parameter: click.Parameter, value: str | None) -> Rgb | None:
    """Read three comma-separated numbers, or one that stands for all three."""
    if value is None:
        return None
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise click.BadParameter(f"{value!r} is neither one number nor three with commas, such as 0.485,0.456,0.406")
    if parameter.name == "std" and min(numbers) <= 0:
        raise click.BadParameter(f"{value!r} must be above 0")
    return numbers[0], numbers[1], numbers[2]

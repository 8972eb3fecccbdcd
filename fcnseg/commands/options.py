"""What commands share: how options are added, sizes, the device, the options of regions, and the table of them."""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.core import ParameterSource

from fcnseg.cores import MOST_THREADS

if TYPE_CHECKING:
    from fcnseg.regions import Region
    from fcnseg.tuning import Settings

_REGIONS_SHOWN = 24
Command = TypeVar("Command", bound=Callable[..., Any])
"""What click decorates."""


def add_options(command: Command, *options: Callable[[Command], Command]) -> Command:
    """Add options to a command, in the order in which its help lists them."""
    for option in reversed(options):
        command = option(command)
    return command


class SectionedCommand(click.Command):
    """A command whose help lists its options under headings.

    Args:
        sections: The heading that begins at an option, by the option's name as a parameter.
        arguments: As for `click.Command`.

    Raises:
        ValueError: A section begins at no option.
    """

    def __init__(self, *, sections: Mapping[str, str], **arguments: Any) -> None:
        super().__init__(**arguments)
        if unknown := sections.keys() - {parameter.name for parameter in self.params}:
            raise ValueError(f"sections begin at parameters that are not there: {', '.join(sorted(unknown))}")
        self._sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in their order."""
        heading, listed = "Options", dict[str, list[tuple[str, str]]]()
        for option in (parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)):
            heading = "Help" if option.is_eager else self._sections.get(option.name or "", heading)
            if (record := option.get_help_record(ctx)) is not None:
                listed.setdefault(heading, []).append(record)
        for heading, records in listed.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class Output(click.Path):
    """Where something is written: never the folder that one is in, which `Path` would take an empty name for."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read an option's or argument's text."""
        if value == "":
            self.fail("its name is empty; name a file or a folder", param, ctx)
        return super().convert(value, param, ctx)


class Size(click.ParamType[tuple[int, int]]):
    """Rows and columns, such as 480x640."""

    name = "HxW"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002  # click's signature
        """Return what stands for a value in the help."""
        return self.name

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read an option's text."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", value)
        if match is None:
            self.fail(f"{value!r} is not HEIGHTxWIDTH in pixels, such as 480x640", param, ctx)
        return int(match[1]), int(match[2])


_MOST_BYTES = 2**62


class Bytes(click.ParamType[int]):
    """A number of bytes, such as 8388608, 8MiB or 2GB.

    Args:
        least: The smallest that is taken.
    """

    name = "BYTES"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read an option's text."""
        from pydantic import ByteSize, TypeAdapter, ValidationError

        try:
            found = int(TypeAdapter(ByteSize).validate_python(value))
        except ValidationError:
            self.fail(f"{value!r} is no number of bytes, such as 8388608, 8MiB or 2GB", param, ctx)
        if found < self._least:
            self.fail(f"{value} is too few bytes; give at least {self._least}", param, ctx)
        if found > _MOST_BYTES:
            self.fail(f"{value} is more bytes than there are; give at most {_MOST_BYTES}", param, ctx)
        return found


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Where to run: cpu, cuda, cuda:N, or auto, which takes a GPU if there is one.",
)


def threads_option(untuned: str = "0") -> Callable[[Command], Command]:
    """Return the option --threads, told what it is where nothing was tuned."""
    return click.option(
        "--threads",
        type=click.IntRange(0, MOST_THREADS),
        help="CPU threads per operator; 0 uses one per physical core, or fewer in a container limited to fewer CPUs."
        f" [default: as tuned, else {untuned}]",
    )


tuned_option = click.option(
    "--tuned/--no-tuned",
    default=True,
    help="Use the settings that 'fcnseg tune' wrote to MODEL.tune.json, unless an option overrides them."
    " [default: tuned]",
)


def tell_tuned(model: Path, used: "Settings") -> None:
    """Tell which settings were taken from what `fcnseg tune` wrote, where some were."""
    from fcnseg.files import shown
    from fcnseg.tuning import tuning_path

    if used.said():
        click.echo(f"as {shown(tuning_path(model))} says: {used}", err=True)


def refuse_given(names: Collection[str], why: str) -> None:
    """Check that none of these options was given on the command line.

    Args:
        names: The options, by the names of their parameters.
        why: The error message, with {} where it names the options that were given.

    Raises:
        click.UsageError: Some were given.
    """
    context = click.get_current_context()
    given = [
        "/".join([parameter.opts[0], *parameter.secondary_opts])
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(why.format(", ".join(given)))


def region_options(command: Command) -> Command:
    """Add --regions, --region-class, --threshold, --min-pixels and --max-regions, and hand over `regions`.

    The last three are refused where neither of the first two is given.

    Args:
        command: Takes the argument `regions`: a `RegionQuery` if --regions or --region-class is given, else None.
    """

    @functools.wraps(command)
    def with_regions(
        *,
        regions: bool,
        region_classes: tuple[str, ...],
        threshold: float,
        min_pixels: int,
        max_regions: int,
        **others: Any,
    ) -> Any:
        from fcnseg.regions import RegionQuery

        query = None
        if regions or region_classes:
            query = RegionQuery(region_classes, threshold, max_regions, min_pixels)
        else:
            other = {"threshold", "min_pixels", "max_regions"}
            refuse_given(other, "{} is for regions; add --regions, or leave it out")
        return command(regions=query, **others)

    return add_options(
        cast("Command", with_regions),
        click.option(
            "--regions",
            is_flag=True,
            help="Also write MASK.regions.json: boxes and scores of the connected regions where a class is probable.",
        ),
        click.option(
            "--region-class",
            "region_classes",
            metavar="CLASS",
            multiple=True,
            help="Write only regions of this class (name or id); implies --regions. May be repeated."
            " [default: all classes]",
        ),
        click.option(
            "--threshold",
            default=0.5,
            show_default=True,
            type=click.FloatRange(0.01, 1, max_open=True),
            help="Lowest probability of a region's pixels.",
        ),
        click.option(
            "--min-pixels",
            default=1,
            show_default=True,
            type=click.IntRange(min=1),
            help="Smallest area of a region, in pixels.",
        ),
        click.option(
            "--max-regions",
            default=100,
            show_default=True,
            type=click.IntRange(1, 1000),
            help="Most regions per image; those with the highest scores are kept.",
        ),
    )


def show_regions(regions: "Iterable[Region]") -> None:
    """Print regions as a table, the highest scores first."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    listed = list(regions)
    if not listed:
        click.echo("no region reaches the threshold")
        return
    table = Table()
    table.add_column("region of")
    for name in ("score", "peak", "left", "top", "width", "height", "pixels"):
        table.add_column(name, justify="right")
    for region in listed[:_REGIONS_SHOWN]:
        box = region.box
        numbers = (box.left, box.top, box.width, box.height, region.pixels)
        table.add_row(escape(region.info.name), f"{region.score:.2f}", f"{region.peak:.2f}", *map(str, numbers))
    Console().print(table)
    if len(listed) > _REGIONS_SHOWN:
        click.echo(f"and {len(listed) - _REGIONS_SHOWN} regions with lower scores")

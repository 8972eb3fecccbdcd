"""`fcnseg tune`: the settings that answer most on this machine, by measurement."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnseg.commands.options import Size, device_option

if TYPE_CHECKING:
    from rich.table import Table

    from fcnseg.tuning import Measurement, Objective

_SIZE = 480, 640


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=Size(),
    help="Size of the images, in pixels. May be repeated. [default: 480x640]",
)
@click.option(
    "--seconds",
    default=120.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Approximate time of the whole measurement; a short one finds less.",
)
@click.option(
    "--objective",
    default="throughput",
    show_default=True,
    type=click.Choice(["latency", "throughput"]),
    help="Optimise for the latency of one client, or for the images per second of many clients.",
)
@device_option
@click.option("--dry-run", is_flag=True, help="Print the settings, and write no file.")
def tune(
    *,
    model: Path,
    sizes: tuple[tuple[int, int], ...],
    seconds: float,
    objective: "Objective",
    device: str,
    dry_run: bool,
) -> None:
    """Measure which settings run MODEL best on this machine, and write them to MODEL.tune.json.

    'fcnseg serve', 'fcnseg segment' and fcnseg.load use these settings on this machine and for exactly this file,
    unless an option overrides them. Masks do not change on the CPU. Run nothing else during the measurement.

    Example: fcnseg tune model.onnx --size 480x640
    """
    from rich.console import Console

    from fcnseg.errors import UsageError
    from fcnseg.files import shown
    from fcnseg.model_file import require_model_file
    from fcnseg.tuner import Tuner
    from fcnseg.tuning import tuning_path

    require_model_file(model)
    with Console(stderr=True).status("measuring") as status:  # shown on a terminal alone
        tuner = Tuner(
            model, device, sizes or (_SIZE,), seconds, objective, lambda done: status.update(f"tried {done.settings}")
        )
        tuning = tuner.run()
    Console().print(_table(tuning.measurements))
    click.echo(f"best for {objective} on {tuning.machine.device}: {tuning.settings}")
    if dry_run:
        return
    try:
        path = tuning.write(model)
    except OSError as error:
        raise UsageError(
            f"{shown(tuning_path(model))} cannot be written: {error.strerror}; give the options above to the server, or"
            " let this user write there"
        ) from error
    click.echo(f"wrote {shown(path)}")


def _table(measurements: "tuple[Measurement, ...]") -> "Table":
    from rich.table import Table

    table = Table()
    for column in ("threads", "spinning", "runners", "max batch", "images/s", "ratio", "spread"):
        table.add_column(column, justify="right")
    table.add_column("")
    for measured in measurements:
        tried = measured.settings
        spinning = "yes" if tried.spinning else "no"
        settings = ("one per core" if tried.threads == 0 else tried.threads, spinning, tried.runners, tried.max_batch)
        figures = (f"{measured.images_per_s:.1f}", f"{measured.gain:.2f}", f"{measured.spread:.2f}")
        table.add_row(*map(str, settings), *figures, "best so far" if measured.won else "")
    return table

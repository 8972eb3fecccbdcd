"""Pictures of the figures: a function for each benchmark that has one, from its result to a matplotlib figure."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator
from result_files import Figure, Result, Table

WIDTH, ROW, PANEL = 7.4, 0.34, 2.9
COLOURS = ("#0072b2", "#d55e00", "#6e7781", "#cc79a7", "#009e73")
"""Told apart with colour-blind eyes too (Okabe and Ito); sides have a mark of their own as well."""
MARKS = "osD^v"


def style() -> AbstractContextManager[None]:
    """How all pictures look, while the block runs."""
    mpl.use("svg")
    return mpl.rc_context(
        {
            "svg.hashsalt": "fcnseg",  # the same figures give the same file
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        }
    )


def eager(result: Result) -> dict[str, Picture]:
    table = _require(result, "eager")
    sides = {side: table.column(f"{side}, ms") for side in ("fcnseg", "eager", "as users write it")}
    return {"eager": _dots(table.column("net"), sides, "milliseconds an image (log scale)", "log")}


def folder(result: Result) -> dict[str, Picture]:
    table = result.table("speed")
    return {} if table is None else {"speed": _ratios(table, ("net", "job"), "images/s over 1 / (T + C)")}


def folder_peers(result: Result) -> dict[str, Picture]:
    table = _require(result, "folder")
    nets = list(dict.fromkeys(table.column("net")))
    sides: dict[str, list[object]] = {}
    for side, rate in zip(table.column("side"), table.column("images/s"), strict=True):
        sides.setdefault(str(side), []).append(rate)
    return {"folder": _dots(nets, sides, "images a second (log scale)", "log")}


def serving_load(result: Result) -> dict[str, Picture]:
    table = result.table("throughput")
    if table is None:
        return {}
    return {
        "throughput": _ratios(table, ("net", "requests"), "requests/s over the loop's: 1 / T, for files 1 / (T + C)")
    }


def scaling(result: Result) -> dict[str, Picture]:
    drawn = {
        "size": _size,
        "batch": _batch,
        "classes": _classes,
        "clients": _clients,
        "models": _models,
    }
    tables = {name: result.table(name) for name in drawn}
    return {name: drawn[name](table, result) for name, table in tables.items() if table is not None}


PICTURES: dict[str, Callable[[Result], dict[str, Picture]]] = {
    "eager": eager,
    "folder": folder,
    "folder_peers": folder_peers,
    "serving_load": serving_load,
    "scaling": scaling,
}
"""By benchmark: what draws its pictures, each by the name of its table."""


def _size(table: Table, result: Result) -> Picture:
    picture, (time, operators, memory) = plt.subplots(1, 3, figsize=(1.4 * WIDTH, PANEL))
    megapixels, seconds = _numbers(table.column("megapixels")), table.column("seconds")
    _line(time, megapixels, seconds, "measured")
    first = _numbers(seconds)[0]
    linear = [first * value / megapixels[0] for value in megapixels]
    time.plot(megapixels, linear, ":", color=COLOURS[2], label="linear from the smallest")
    _axes(time, "megapixels", "seconds", "Time", "log", "log")
    time.legend()
    shares = _require(result, "operators")
    sides = _numbers(shares.column("side, pixels"))
    names = shares.columns[1:]
    operators.stackplot(sides, [_numbers(shares.column(name)) for name in names], labels=names, colors=COLOURS)
    _axes(operators, "side, pixels", "milliseconds a megapixel", "Where a pixel's time goes", "log", None)
    operators.set_xticks(sides)
    operators.legend(reverse=True, loc="upper left", bbox_to_anchor=(1, 1), handlelength=1)
    _line(memory, megapixels, table.column("peak memory, MiB"), None)
    _axes(memory, "megapixels", "MiB", "Peak memory", "log", "log")
    return picture


def _batch(table: Table, _: Result) -> Picture:
    picture, (rate, memory) = plt.subplots(1, 2, figsize=(WIDTH, PANEL))
    images = _numbers(table.column("images"))
    _line(rate, images, table.column("images/s"), None)
    _axes(rate, "images in a run", "images a second", "Throughput", None, None)
    _line(memory, images, table.column("peak memory, MiB"), None)
    _axes(memory, "images in a run", "MiB", "Peak memory", None, None)
    return _from_zero(picture, images)


def _classes(table: Table, _: Result) -> Picture:
    picture, (time, memory) = plt.subplots(1, 2, figsize=(WIDTH, PANEL))
    ats = table.column("arg-max at")
    for colour, at in zip(COLOURS, dict.fromkeys(ats), strict=False):
        rows = [i for i, value in enumerate(ats) if value == at]
        classes = _numbers([table.column("classes")[i] for i in rows])
        label = f"arg-max at every {at}"
        _line(time, classes, [table.column("seconds")[i] for i in rows], label, colour)
        _line(memory, classes, [table.column("peak memory, MiB")[i] for i in rows], label, colour)
    _axes(time, "classes", "seconds an image", "Time", "log", None)
    _axes(memory, "classes", "MiB", "Peak memory", "log", None)
    time.legend()
    return _from_zero(picture)


def _clients(table: Table, _: Result) -> Picture:
    picture, (rate, wait, memory) = plt.subplots(1, 3, figsize=(1.4 * WIDTH, PANEL))
    clients = _numbers(table.column("clients"))
    _line(rate, clients, table.column("answers/s"), None)
    _axes(rate, "clients", "answers a second", "Throughput", "log", None)
    _line(wait, clients, table.column("median wait, ms"), "median")
    _line(wait, clients, table.column("99th percentile, ms"), "99th percentile", COLOURS[1])
    _axes(wait, "clients", "milliseconds", "Wait for an answer", "log", "log")
    wait.legend()
    _line(memory, clients, table.column("server's peak memory, MiB"), None)
    _axes(memory, "clients", "MiB", "Server's peak memory", "log", None)
    for axes in picture.axes:
        axes.set_xticks(clients)
    for axes in (rate, memory):
        axes.set_ylim(0, 1.05 * axes.dataLim.y1)
    return picture


def _models(table: Table, _: Result) -> Picture:
    picture, (start, memory, rate) = plt.subplots(1, 3, figsize=(1.4 * WIDTH, PANEL))
    models = _numbers(table.column("models"))
    _line(start, models, table.column("seconds from start to SERVING"), None)
    _axes(start, "models", "seconds", "From start to SERVING", None, None)
    _line(memory, models, table.column("memory at rest, MiB"), "at rest")
    _line(memory, models, table.column("peak memory, MiB"), "peak", COLOURS[1])
    _axes(memory, "models", "MiB", "Server's memory", None, None)
    memory.legend()
    _line(rate, models, table.column("answers/s"), None)
    _axes(rate, "models", "answers a second", "Throughput", None, None)
    return _from_zero(picture, models)


def _dots(names: Sequence[object], sides: Mapping[str, Sequence[object]], label: str, scale: str | None) -> Picture:
    """A row for each name, a dot for each side in it, and a line over its range."""
    height = ROW * max(2, len(names)) * 1.4 + 0.9
    picture, axes = plt.subplots(figsize=(WIDTH, height))
    for i, (side, cells) in enumerate(sides.items()):
        rows = [row + 0.22 * (i - (len(sides) - 1) / 2) for row in range(len(names))]
        medians = _numbers(cells)
        low = [m - c.low if isinstance(c, Figure) else 0.0 for m, c in zip(medians, cells, strict=True)]
        high = [c.high - m if isinstance(c, Figure) else 0.0 for m, c in zip(medians, cells, strict=True)]
        axes.errorbar(
            medians, rows, xerr=(low, high), fmt=MARKS[i], color=COLOURS[i], label=side, markersize=5, linewidth=1.4
        )
    axes.set_yticks(range(len(names)), [str(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    _axes(axes, label, "", "", scale, None)
    if len(sides) > 1:
        picture.legend(loc="outside upper right", ncols=len(sides))
    return picture


def _ratios(table: Table, labels: tuple[str, str], axis: str) -> Picture:
    """The ratios of a table's rows, beside 1."""
    names = [f"{net}\n{what}" for net, what in zip(*(table.column(label) for label in labels), strict=True)]
    picture = _dots(names, {"ratio": table.column("ratio")}, axis, None)
    (axes,) = picture.axes
    axes.axvline(1, color=COLOURS[2], linewidth=1)
    axes.set_xlim(left=0)
    return picture


def _line(axes: Axes, x: Sequence[float], cells: Sequence[object], label: str | None, colour: str = COLOURS[0]) -> None:
    """Medians joined by a line, with their range."""
    mark = MARKS[COLOURS.index(colour)]
    axes.plot(x, _numbers(cells), f"{mark}-", color=colour, label=label, markersize=4, linewidth=1.4)
    ranges = [(place, cell) for place, cell in zip(x, cells, strict=True) if isinstance(cell, Figure)]
    for place, cell in ranges:
        axes.plot([place, place], [cell.low, cell.high], color=colour, linewidth=1)


def _axes(axes: Axes, x: str, y: str, title: str, x_scale: str | None, y_scale: str | None) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left")
    for scale, setter, axis in ((x_scale, axes.set_xscale, axes.xaxis), (y_scale, axes.set_yscale, axes.yaxis)):
        if scale == "log":
            setter(scale)
            axis.set_major_locator(LogLocator(10, (1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()


def _from_zero(picture: Picture, ticks: Sequence[float] = ()) -> Picture:
    for axes in picture.axes:
        axes.set_ylim(0, 1.05 * axes.dataLim.y1)
        if ticks:
            axes.set_xticks(ticks)
    return picture


def _numbers(cells: Sequence[object]) -> list[float]:
    return [cell.median if isinstance(cell, Figure) else float(cell) for cell in cells]  # type: ignore[arg-type]


def _require(result: Result, name: str) -> Table:
    table = result.table(name)
    if table is None:
        raise SystemExit(f"{result.benchmark} has no table {name}; run {result.command} again")
    return table

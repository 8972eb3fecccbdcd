"""A net's layers as a table for people: whole names where they fit, else an outline of the modules."""

from collections.abc import Iterable, Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fcnseg.certificate import format_pair
from fcnseg.layers import Layer, count_parameters

_WIDEST = 1000
_NARROWEST_NAME = 12
_INDENT = "  "


def layer_table(layers: tuple[Layer, ...], console: Console) -> Table:
    """Lay out a net's layers for a console.

    Args:
        layers: The layers, at least one.
        console: Where the table is to fit.

    Returns:
        A table of one row per layer; shares are of the layers' parameters.
    """
    whole = _table(layers, ((layer.name, layer) for layer in layers))
    too_wide = console.measure(whole, options=console.options.update(width=_WIDEST)).maximum - console.width
    if too_wide <= 0:
        return whole
    saved = len(whole.columns)  # one space between columns in place of two
    room = max(_NARROWEST_NAME, max(len(layer.name) for layer in layers) + saved - too_wide)
    return _table(layers, _outline(layers, room), room)


def _table(layers: tuple[Layer, ...], lines: Iterable[tuple[str, Layer | None]], room: int = 0) -> Table:
    total = count_parameters(layers)
    table = Table(box=SIMPLE_HEAD, padding=(0, 0 if room else 1, 0, 0), show_edge=False)
    table.add_column("layer", overflow="fold", min_width=room)
    table.add_column("kind", no_wrap=True)
    table.add_column("operation")
    for column in ("output", "stride", "field", "parameters", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for text, layer in lines:
        if layer is None:
            table.add_row(Text(text, "bold"))
            continue
        table.add_row(
            Text(text),
            layer.kind,
            Text(layer.operation if layer.was is None else f"{layer.operation}\nwas {layer.was}"),
            "x".join(map(str, layer.shape)),
            "" if layer.stride is None else format_pair(layer.stride),
            "" if layer.receptive_field is None else format_pair(layer.receptive_field),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.parameters / total:.1%}" if layer.parameters else "",
        )
    return table


def _outline(layers: tuple[Layer, ...], width: int) -> Iterator[tuple[str, Layer | None]]:
    """Each layer by the end of its name, below a line without a layer for the module that it is in."""
    modules: list[str] = []
    for layer in layers:
        parent, _, name = layer.name.rpartition(".")
        while modules and not f"{parent}.".startswith(f"{modules[-1]}."):
            modules.pop()
        if parent and (not modules or modules[-1] != parent):
            heading = parent.removeprefix(f"{modules[-1]}.") if modules else parent
            yield _folded(heading, len(modules), width), None
            modules.append(parent)
        yield _INDENT * len(modules) + name, layer


def _folded(path: str, level: int, width: int) -> str:
    """A module's path, indented, and broken behind its dots into lines of at most `width` characters if possible."""
    lines = [_INDENT * level]
    for part in path.split("."):
        if lines[-1].strip() and len(lines[-1]) + len(part) >= width:  # a dot may follow
            lines.append(_INDENT * level)
        lines[-1] += f"{part}."
    return "\n".join(lines).removesuffix(".")

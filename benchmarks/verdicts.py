"""Says whether the figures reach the aims, and which servers are ahead."""

from collections.abc import Iterator
from dataclasses import dataclass

from result_files import Figure, Result, Table

OURS = "`fcnseg serve`"
_ALL_OURS = "`fcnseg"


@dataclass(frozen=True)
class Aim:
    """What the figures of a column should reach.

    Attributes:
        table: The table's name.
        column: The column's title.
        least: The least that a figure should be.
        of: The rows that count, as the title and the value of another column; all rows by default.
    """

    table: str
    column: str
    least: float
    of: tuple[str, str] | None = None


AIMS = {
    "eager": Aim("eager", "eager / fcnseg", 1.5),
    "int8": Aim("int8", "fp32 / int8", 1.5),
    "tail": Aim("21 classes", "the net alone over it", 0.85, ("tail", "borders (used)")),
    "train_step": Aim("train_step", "ratio", 0.95, ("side", "fcnseg train")),
}
"""By benchmark."""


def verdicts(result: Result, table: Table) -> Iterator[str]:
    """Yield sentences about a table."""
    aim = AIMS.get(result.benchmark)
    if aim is not None and aim.table == table.name:
        yield _on_aim(aim, table)
    if result.benchmark == "serving_peers":
        yield from _on_servers(table)


def _on_aim(aim: Aim, table: Table) -> str:
    told: dict[str, list[str]] = {
        "Reached in all rounds": [],
        "Reached by the median, not in all rounds": [],
        "Missed": [],
    }
    always, usually, missed = told.values()
    for row, cell in zip(table.rows, table.column(aim.column), strict=True):
        if aim.of is None or row[table.columns.index(aim.of[0])] == aim.of[1]:
            low, median, _ = _range(cell)
            kind = always if low >= aim.least else usually if median >= aim.least else missed
            kind.append(str(row[0]))
    return f"Aim: at least {aim.least:g} ({aim.column}). {_listed(told)}"


def _on_servers(table: Table) -> Iterator[str]:
    """Yield which peers answered more requests than fcnseg, whose row is the first."""
    names = [str(name) for name in table.column("server")]
    if names[0] != OURS:
        return
    for column in (name for name in table.columns if name.endswith("of session.run")):
        _, ours, most = _range(table.column(column)[0])
        ahead: dict[bool, list[str]] = {True: [], False: []}
        for name, cell in zip(names, table.column(column), strict=True):
            low, median, _ = _range(cell)
            if not name.startswith(_ALL_OURS) and median > ours:
                ahead[low > most].append(name)
        clients = column.partition(",")[0]
        yield _listed(
            {
                f"Ahead of {OURS} with {clients}, ranges apart": ahead[True],
                f"Ahead of {OURS} with {clients} by the median, ranges overlapping": ahead[False],
                f"Ahead of {OURS} with {clients}": [] if any(ahead.values()) else ["none"],
            }
        )


def _listed(found: dict[str, list[str]]) -> str:
    """Return a sentence for each kind of which there are rows."""
    return " ".join(f"{kind}: {'; '.join(names)}." for kind, names in found.items() if names)


def _range(cell: object) -> tuple[float, float, float]:
    """Return the least, the median and the greatest value of a cell."""
    if isinstance(cell, Figure):
        return cell.low, cell.median, cell.high
    if not isinstance(cell, (int, float)):
        raise TypeError(f"{cell!r} is no figure")
    return (float(cell),) * 3

"""The figures that `reporting.py` kept, read back: a file that is not such a report is refused in one line."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from reporting import Spread


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Figure(_Strict):
    """Median, least and greatest of figures, one a round; without a range where there was one alone."""

    median: float
    low: float
    high: float
    values: list[float]

    def __str__(self) -> str:
        return str(Spread.of(self.values))


class Table(_Strict):
    name: str
    title: str
    columns: list[str]
    rows: list[list[Figure | float | str | None]]
    note: str

    @model_validator(mode="after")
    def _is_rectangular(self) -> Self:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of table {self.name} has not {len(self.columns)} cells")
        return self

    def column(self, name: str) -> list[Figure | float | str | None]:
        """The cells under a name."""
        return [row[self.columns.index(name)] for row in self.rows]


class Machine(_Strict):
    processor: str
    cores: int
    memory_gib: float
    load: float
    gpu: str | None


class Result(_Strict):
    benchmark: str
    question: str
    command: str
    date: str
    commit: str
    machine: Machine
    versions: dict[str, str]
    tables: list[Table]

    def table(self, name: str) -> Table | None:
        """The table of that name; None where its question was not asked."""
        return next((table for table in self.tables if table.name == name), None)


class NotAReportError(SystemExit):
    """A file does not hold what `reporting.py` keeps; the message says where."""


def read(path: Path) -> Result:
    """Read a report.

    Raises:
        NotAReportError: It is none.
    """
    try:
        return Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise NotAReportError(f"{path} is not a benchmark's report ({reason}); run its benchmark again") from None

"""The manifest: a line of JSON for every image of a job, which tells what became of it.

While a job runs, lines are added as images are finished; a killed program leaves at most half a line behind, which is
dropped. At its end the lines are put into the order of the images. A job that goes on reads which images are done.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from fcnseg.files import named_in_errors, replacing
from fcnseg.types import ClassArea, ClassPeak


@dataclass(frozen=True)
class Row:
    """What became of one image; the fields are those of a line.

    Attributes:
        image: The image's path below the input, with `/` between folders.
        size_bytes: The image file's size.
        modified_ns: When it was last written, in nanoseconds since 1970.
        mask: The mask's path below the output; None where the image failed.
        files: What was written beside the mask.
        height: Rows of the mask; None where the image failed.
        width: Columns.
        classes: Classes present: id, name, pixels, fraction.
        top: Where the most probable classes were asked for: id, name, probability.
        timings_ms: What the stages took, in milliseconds: decode, infer, encode; with a server also queue and total.
        error: Why the image failed; None where it did not.
    """

    image: str
    size_bytes: int | None = None
    modified_ns: int | None = None
    mask: str | None = None
    files: tuple[str, ...] = ()
    height: int | None = None
    width: int | None = None
    classes: tuple[dict[str, Any], ...] = ()
    top: tuple[dict[str, Any], ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def line(self) -> bytes:
        """Return the row as a line of JSON, which is ASCII whatever the names are."""
        return json.dumps(self.__dict__).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Self:
        """Read a line.

        Raises:
            ValueError: It is none.
        """
        try:
            fields = json.loads(line)
            for name in ("files", "classes", "top"):
                fields[name] = tuple(fields[name])
            return cls(**fields)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a row: {error}") from error


def write_areas(classes: Iterable[ClassArea]) -> tuple[dict[str, Any], ...]:
    """Return classes present as a row has them."""
    return tuple(
        {"id": a.info.id, "name": a.info.name, "pixels": a.pixels, "fraction": round(a.fraction, 6)} for a in classes
    )


def write_peaks(top: Iterable[ClassPeak]) -> tuple[dict[str, Any], ...]:
    """Return the most probable classes as a row has them."""
    return tuple({"id": p.info.id, "name": p.info.name, "probability": round(p.probability, 6)} for p in top)


class Manifest:
    """A manifest that is being written.

    Args:
        path: The file; what it holds already is kept.
        fresh: Whether to begin anew.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self._places: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("w+b" if fresh else "a+b")
        try:
            self._read_places()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with named_in_errors(self._path):  # what could not be written is tried once more
            self._file.close()

    def row(self, image: str) -> Row | None:
        """Return the latest row of an image, if it has one."""
        place = self._places.get(image)
        if place is None:
            return None
        return Row.of(self._line_at(place))

    def append(self, row: Row) -> None:
        """Add a row; it is with the system when this returns.

        Raises:
            OSError: It cannot be written.
        """
        with named_in_errors(self._path):
            self._places[row.image] = self._file.seek(0, os.SEEK_END)
            self._file.write(row.line())
            self._file.flush()

    def put_in_order(self, images: Iterable[str]) -> None:
        """Write the manifest anew: the latest row of each of these images, in their order."""
        with replacing(self._path) as temporary, temporary.open("wb") as file:
            for image in images:
                if (place := self._places.get(image)) is not None:
                    file.write(self._line_at(place))
            self._file.close()  # Windows replaces no file that is open
        self._file = self._path.open("a+b")
        self._places.clear()
        self._read_places()

    def _line_at(self, place: int) -> bytes:
        self._file.seek(place)
        return self._file.readline()

    def _read_places(self) -> None:
        """Find the latest row of each image, and cut off what a killed program left half written."""
        self._file.seek(0)
        place = 0
        for line in self._file:
            row = None
            with suppress(ValueError):
                row = Row.of(line) if line.endswith(b"\n") else None
            if row is None:
                self._file.truncate(place)
                return
            self._places[row.image] = place
            place += len(line)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a manifest."""
    with path.open("rb") as file:
        yield from map(Row.of, file)

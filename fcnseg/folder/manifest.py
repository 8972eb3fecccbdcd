"""The manifest: a line of JSON for every image of a job, with its outcome.

While a job runs, a line is appended as each image is finished; a killed program leaves at most one incomplete line,
which is dropped. At the end of the job the lines are sorted in the order of the images. A job that continues an earlier
one reads from the manifest which images are done.
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
    """The outcome for one image; the fields are those of a line.

    Attributes:
        image: The image's path relative to the input, with `/` between folders.
        size_bytes: The image file's size.
        modified_ns: The file's modification time, in nanoseconds since 1970.
        mask: The mask's path relative to the output; None if the image failed.
        files: The other files written for the image, relative to the output.
        height: Rows of the mask; None if the image failed.
        width: Columns of the mask; None if the image failed.
        classes: Classes present: id, name, pixels, fraction.
        top: The most probable classes, if asked for: id, name, probability.
        timings_ms: Duration of each stage, in milliseconds: decode, infer, encode; with a server also queue and total.
        error: Why the image failed; None if it did not.
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
        """Return the row as a line of JSON, in ASCII for any names."""
        return json.dumps(self.__dict__).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Self:
        """Read a line.

        Raises:
            ValueError: The line is not a valid row.
        """
        try:
            fields = json.loads(line)
            for name in ("files", "classes", "top"):
                fields[name] = tuple(fields[name])
            return cls(**fields)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a row: {error}") from error


def write_areas(classes: Iterable[ClassArea]) -> tuple[dict[str, Any], ...]:
    """Return the classes present in the form of `Row.classes`."""
    return tuple(
        {"id": a.info.id, "name": a.info.name, "pixels": a.pixels, "fraction": round(a.fraction, 6)} for a in classes
    )


def write_peaks(top: Iterable[ClassPeak]) -> tuple[dict[str, Any], ...]:
    """Return the most probable classes in the form of `Row.top`."""
    return tuple({"id": p.info.id, "name": p.info.name, "probability": round(p.probability, 6)} for p in top)


class Manifest:
    """A manifest that is being written.

    Args:
        path: The file; existing rows are kept unless `fresh`.
        fresh: Whether to start with an empty manifest.
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
        with named_in_errors(self._path):  # closing tries once more to write buffered data
            self._file.close()

    def row(self, image: str) -> Row | None:
        """Return the latest row of an image, if it has one."""
        place = self._places.get(image)
        if place is None:
            return None
        return Row.of(self._line_at(place))

    def append(self, row: Row) -> None:
        """Append a row and flush it to the operating system.

        Raises:
            OSError: The row cannot be written.
        """
        with named_in_errors(self._path):
            self._places[row.image] = self._file.seek(0, os.SEEK_END)
            self._file.write(row.line())
            self._file.flush()

    def put_in_order(self, images: Iterable[str]) -> None:
        """Rewrite the manifest with the latest row of each of these images, in their order."""
        with replacing(self._path) as temporary, temporary.open("wb") as file:
            for image in images:
                if (place := self._places.get(image)) is not None:
                    file.write(self._line_at(place))
            self._file.close()  # Windows cannot replace an open file
        self._file = self._path.open("a+b")
        self._places.clear()
        self._read_places()

    def _line_at(self, place: int) -> bytes:
        self._file.seek(place)
        return self._file.readline()

    def _read_places(self) -> None:
        """Find the latest row of each image, and truncate an incomplete line that a killed program left."""
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

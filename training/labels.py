"""What the ids and colours in a data set's masks mean: `classes.json`, or the `labelmap.txt` that CVAT exports.

    {"names": ["sky", "road", "void"], "palette_rgb": [[128, 128, 128], [128, 64, 128], [0, 0, 0]], "void": 2}

`palette_rgb` may be left out, unless the masks are drawn in colours. `void` is the id of pixels without a label; the
model has no such class. It may be the id of the last name or an id without a name; its default is 255.

`labelmap.txt` has a line `name:r,g,b::` for each class, in the order of the ids. `classes.json` takes precedence.
"""

import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fcnseg.errors import DatasetError
from fcnseg.files import write_text
from fcnseg.types import Colour, LabelMap

CLASSES_FILE = "classes.json"
LABELMAP_FILE = "labelmap.txt"
IGNORE_ID = 255

_COLOUR: TypeAdapter[Colour] = TypeAdapter(Colour)


@dataclass(frozen=True)
class Labels:
    """The classes of a data set, and the colours that its masks may be drawn in.

    Attributes:
        label_map: What the ids mean.
        colours: The id of each class by its colour, and of pixels without a label if their colour is given; empty if no
            colours are given.
        source: The file that these values come from, for messages.
    """

    label_map: LabelMap
    colours: tuple[tuple[Colour, int], ...]
    source: str


class _ClassesFile(BaseModel):
    model_config = ConfigDict(extra="ignore")

    names: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2, max_length=256)]
    palette_rgb: list[Colour] | None = None
    void: Annotated[int, Field(ge=0, le=255)] | None = None


def find_labels(root: Path) -> Labels | None:
    """Read the file that defines a data folder's classes; return None if there is none.

    Raises:
        DatasetError: The file is not valid.
    """
    if (root / CLASSES_FILE).is_file():
        return read_labels(root / CLASSES_FILE)
    if (root / LABELMAP_FILE).is_file():
        return read_labelmap(root / LABELMAP_FILE)
    return None


def read_labels(path: Path) -> Labels:
    """Read a `classes.json`.

    Args:
        path: The file.

    Returns:
        The classes without void; the ignore id is that of void, or 255.

    Raises:
        DatasetError: The file is not valid; the message names the first field that is wrong.
    """
    try:
        content = _ClassesFile.model_validate_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DatasetError(f"{path}: not valid at {where}: {first['msg']}; its form is in docs/training.md") from error
    names, colours = content.names, content.palette_rgb
    _require_distinct(path, names)
    if colours is not None and len(colours) != len(names):
        raise DatasetError(f"{path}: {len(colours)} colours in palette_rgb for {len(names)} names; give one for each")
    drawn = tuple((colour, i) for i, colour in enumerate(colours or []))
    void = content.void
    if void is not None and void < len(names) - 1:
        raise DatasetError(
            f"{path}: void is {void}, but class ids must be 0 to K - 1 with void behind them;"
            " renumber the masks, or take 255 for void"
        )
    if void == len(names) - 1:
        names, colours = names[:-1], colours and colours[:-1]
    if len(names) < 2:
        raise DatasetError(f"{path} names one class and void; training takes 2 classes or more, so name another")
    if void is None and len(names) <= IGNORE_ID:
        void = IGNORE_ID
    return Labels(LabelMap.from_names(names, colours, void), drawn, path.name)


def read_labelmap(path: Path) -> Labels:
    """Read a `labelmap.txt`: ids in the order of the lines, 255 for pixels without a label.

    Raises:
        DatasetError: The file is not valid; the message names the first line that is wrong.
    """
    names: list[str] = []
    colours: list[Colour] = []
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); write a line name:r,g,b:: for each class") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            colours.append(_COLOUR.validate_python([int(part) for part in rest.split(":")[0].split(",")]))
        except ValueError as error:
            raise DatasetError(f"{path}, line {number}: {line!r} is not name:r,g,b::; correct the line") from error
        names.append(name.strip())
    _require_distinct(path, names)
    if not 2 <= len(names) <= IGNORE_ID:
        raise DatasetError(f"{path} names {len(names)} classes; training takes 2 to {IGNORE_ID}")
    drawn = tuple((colour, i) for i, colour in enumerate(colours))
    return Labels(LabelMap.from_names(names, colours, IGNORE_ID), drawn, path.name)


def write_label_map(path: Path, label_map: LabelMap) -> None:
    """Write a `classes.json` that `read_labels` reads back as the same label map."""
    content = {
        "names": [info.name for info in label_map.classes],
        "palette_rgb": [list(info.colour) for info in label_map.classes],
        "void": label_map.ignore_id,
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def _require_distinct(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"{path}: the name {twice!r} stands for two classes; give each class a name of its own")

"""`classes.json`: what the ids in a data set's masks mean.

    {"names": ["sky", "road", "void"], "palette_rgb": [[128, 128, 128], [128, 64, 128], [0, 0, 0]], "void": 2}

`palette_rgb` may be left out. `void` is the id of pixels without a label: it is no class of the model. It may be the
last name, or an id that has no name; 255 where it is not given.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fcnseg.errors import DatasetError
from fcnseg.files import write_text
from fcnseg.types import Colour, LabelMap

CLASSES_FILE = "classes.json"
IGNORE_ID = 255


class _ClassesFile(BaseModel):
    model_config = ConfigDict(extra="ignore")

    names: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2, max_length=256)]
    palette_rgb: list[Colour] | None = None
    void: Annotated[int, Field(ge=0, le=255)] | None = None


def read_label_map(path: Path) -> LabelMap:
    """Read a `classes.json`.

    Args:
        path: The file.

    Returns:
        The classes without void; the ignore id is that of void, or 255.

    Raises:
        DatasetError: The file is not of this form; the message names the first field that is wrong.
    """
    try:
        content = _ClassesFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DatasetError(f"{path}: not valid at {where}: {first['msg']}; see the README for its form") from error
    names, colours = content.names, content.palette_rgb
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"{path}: the name {twice!r} stands for two classes; give each class a name of its own")
    if colours is not None and len(colours) != len(names):
        raise DatasetError(f"{path}: {len(colours)} colours in palette_rgb for {len(names)} names; give one for each")
    void = content.void
    if void is not None and void < len(names) - 1:
        raise DatasetError(
            f"{path}: void is {void}, but class ids must be 0 to K - 1 with void behind them;"
            " renumber the masks, or take 255 for void"
        )
    if void == len(names) - 1:
        names, colours = names[:-1], colours and colours[:-1]
    if void is None and len(names) <= IGNORE_ID:
        void = IGNORE_ID
    return LabelMap.from_names(names, colours, void)


def write_label_map(path: Path, label_map: LabelMap) -> None:
    """Write a `classes.json` that `read_label_map` reads back as the same label map."""
    content = {
        "names": [info.name for info in label_map.classes],
        "palette_rgb": [list(info.colour) for info in label_map.classes],
        "void": label_map.ignore_id,
    }
    write_text(path, json.dumps(content, indent=1) + "\n")

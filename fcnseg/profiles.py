"""Get onnxruntime's profile of runs, which it only writes to a file, through a temporary folder.

onnxruntime does not report an error if it cannot write the file; the file is then cut short.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import onnxruntime

from fcnseg.errors import ModelFileError

Event: TypeAlias = Mapping[str, Any]
"""An entry of a profile."""


@contextmanager
def profile_folder(model: Path) -> Iterator[Path]:
    """Make a folder for the profiles of a model file's runs, which is removed afterwards.

    Raises:
        ModelFileError: The folder cannot be made; the message names the model file.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="fcnseg-")
    except OSError as error:
        raise _no_room(model, f"no temporary folder can be made: {error}") from error
    with folder as name:
        yield Path(name)


def end_profiling(session: onnxruntime.InferenceSession, model: Path) -> list[Event]:
    """End a session's profiling, and return what it recorded.

    Raises:
        ModelFileError: The profile could not be written; the message names the model file.
    """
    path = Path(session.end_profiling())
    try:
        events: list[Event] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _no_room(model, f"the record of its runs could not be written to {path.parent.parent}") from error
    return events


def _no_room(model: Path, reason: str) -> ModelFileError:
    return ModelFileError(
        f"{model} cannot be tried before use: {reason}; make room there, or set TMPDIR to a disk that has it"
    )

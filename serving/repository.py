"""Where a server's models come from: model files, and repositories of them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fcnseg.errors import ModelFileError, UsageError
from fcnseg.files import shown

_FILE_NAME = "model.onnx"
_VERSION = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: What clients call it.
        version: A positive number in decimal, without leading zeros.
        path: Its model file.
    """

    name: str
    version: str
    path: Path


Faults: TypeAlias = dict[str, ModelFileError]
"""Errors of the folders of models in repositories, by the models' names."""


def find_sources(paths: Sequence[Path], faults: Faults | None = None) -> list[ModelSource]:
    """Return the models that paths contain.

    Args:
        paths: Model files, whose name is the file's stem and whose version is 1, and repositories, which are folders
            of NAME/VERSION/model.onnx (Triton's layout).
        faults: Collects the errors of models' folders, where one without a version counts as being filled; None raises
            them all.

    Raises:
        ModelFileError: A path does not exist or cannot be read, or a repository or a model in it is empty, or has a
            name that is not text.
        UsageError: Two paths contain the same model and version.
    """
    with _faults_told():
        found = _find_sources(paths, faults)
    return sorted(found, key=lambda source: (source.name, int(source.version)))


@contextmanager
def _faults_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = shown(Path(str(error.filename)))
        raise ModelFileError(f"{place} cannot be examined: {error.strerror}; let the server read it") from error


def _find_sources(paths: Sequence[Path], faults: Faults | None) -> list[ModelSource]:
    sources: dict[tuple[str, str], ModelSource] = {}
    for path in paths:
        if not path.exists():
            raise ModelFileError(f"model file {path} does not exist; make one with 'fcnseg heatmap' or 'fcnseg export'")
        for source in _sources_in(path, faults) if path.is_dir() else [_source(path.stem, "1", path)]:
            other = sources.setdefault((source.name, source.version), source)
            if other is not source:
                raise UsageError(
                    f"{other.path} and {source.path} are both model {source.name!r}, version {source.version};"
                    " rename one of them"
                )
    return list(sources.values())


def _source(name: str, version: str, path: Path) -> ModelSource:
    if not name.isprintable():
        raise ModelFileError(f"the name of model {shown(path)} is not a line of printable text; rename it")
    return ModelSource(name, version, path)


def _sources_in(repository: Path, faults: Faults | None) -> Iterator[ModelSource]:
    folders = [folder for folder in _list(repository) if folder.is_dir() and not _is_systems(folder.name)]
    if not folders:
        raise ModelFileError(f"model repository {repository} is empty; its layout is NAME/VERSION/{_FILE_NAME}")
    for folder in folders:
        try:
            with _faults_told():
                versions = [v for v in _list(folder) if _VERSION.fullmatch(v.name) and (v / _FILE_NAME).is_file()]
            found = [_source(folder.name, v.name, v / _FILE_NAME) for v in versions]
        except ModelFileError as error:
            if faults is None:
                raise
            faults[folder.name] = error
            continue
        if faults is None and not found:
            raise ModelFileError(
                f"{folder} in model repository {repository} holds no version; put the model at {folder}/1/{_FILE_NAME}"
            )
        yield from found


def _is_systems(name: str) -> bool:
    """Tell whether a folder is not the user's: hidden, or `lost+found`."""
    return name.startswith(".") or name == "lost+found"


def _list(folder: Path) -> list[Path]:
    """Return what a folder contains, sorted by name; nothing if it has just been removed.

    Raises:
        ModelFileError: It cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ModelFileError(f"folder {folder} cannot be read: {error.strerror}; let the server read it") from error

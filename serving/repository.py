"""Where a server's models come from: model files, and repositories of them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def find_sources(paths: Sequence[Path], *, strict: bool = True) -> list[ModelSource]:
    """Return the models that paths stand for.

    Args:
        paths: Model files, whose name is the file's stem and whose version is 1, and repositories, which are folders
            of NAME/VERSION/model.onnx (Triton's layout).
        strict: Whether a model's folder without a version is an error, and not one that is being filled.

    Raises:
        ModelFileError: A path does not exist or cannot be read, or a repository or a model in it is empty, or has a
            name that is no text.
        UsageError: Two paths stand for the same model and version.
    """
    try:
        found = _find_sources(paths, strict=strict)
    except OSError as error:
        place = shown(Path(str(error.filename)))
        raise ModelFileError(f"{place} cannot be looked at: {error.strerror}; let the server read it") from error
    for source in found:
        if not source.name.isprintable():
            raise ModelFileError(f"the name of model {shown(source.path)} is no line of text; rename it")
    return sorted(found, key=lambda source: (source.name, int(source.version)))


def _find_sources(paths: Sequence[Path], *, strict: bool) -> list[ModelSource]:
    sources: dict[tuple[str, str], ModelSource] = {}
    for path in paths:
        if not path.exists():
            raise ModelFileError(f"model file {path} does not exist; make one with 'fcnseg heatmap' or 'fcnseg export'")
        for source in _sources_in(path, strict=strict) if path.is_dir() else [ModelSource(path.stem, "1", path)]:
            other = sources.setdefault((source.name, source.version), source)
            if other is not source:
                raise UsageError(
                    f"{other.path} and {source.path} are both model {source.name!r}, version {source.version};"
                    " rename one of them"
                )
    return list(sources.values())


def _sources_in(repository: Path, *, strict: bool) -> Iterator[ModelSource]:
    folders = [folder for folder in _list(repository) if folder.is_dir() and not _is_systems(folder.name)]
    if not folders:
        raise ModelFileError(f"model repository {repository} is empty; its layout is NAME/VERSION/{_FILE_NAME}")
    for folder in folders:
        versions = [v for v in _list(folder) if _VERSION.fullmatch(v.name) and (v / _FILE_NAME).is_file()]
        if strict and not versions:
            raise ModelFileError(
                f"{folder} in model repository {repository} holds no version; put the model at {folder}/1/{_FILE_NAME}"
            )
        for version in sorted(versions, key=lambda v: int(v.name)):
            yield ModelSource(folder.name, version.name, version / _FILE_NAME)


def _is_systems(name: str) -> bool:
    """Tell whether a folder is none of the user's: hidden, or where a file system puts what it found."""
    return name.startswith(".") or name == "lost+found"


def _list(folder: Path) -> list[Path]:
    """Return what a folder holds by name; nothing where it has just been removed.

    Raises:
        ModelFileError: It cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ModelFileError(f"folder {folder} cannot be read: {error.strerror}; let the server read it") from error

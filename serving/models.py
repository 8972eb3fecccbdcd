"""The models that a server holds, by name and version."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fcnseg.errors import ModelFileError, ModelNotFoundError, UsageError
from fcnseg.model_file import ModelInfo
from fcnseg.segmenter import Segmenter, load
from serving.executor import ModelExecutor

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


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that is open and can answer.

    Attributes:
        name: What clients call it.
        version: A positive number in decimal.
        info: What its file says of itself.
        device: Where it runs: `cpu` or `cuda:N`.
        executor: Runs it.
    """

    name: str
    version: str
    info: ModelInfo
    device: str
    executor: ModelExecutor


def find_sources(paths: Sequence[Path]) -> list[ModelSource]:
    """Return the models that paths stand for.

    Args:
        paths: Model files, whose name is the file's stem and whose version is 1, and repositories, which are folders
            of NAME/VERSION/model.onnx (Triton's layout).

    Raises:
        ModelFileError: A path does not exist, or a repository or a model in it is empty.
        UsageError: Two paths stand for the same model and version.
    """
    sources: dict[tuple[str, str], ModelSource] = {}
    for path in paths:
        for source in _sources_in(path) if path.is_dir() else [ModelSource(path.stem, "1", path)]:
            other = sources.setdefault((source.name, source.version), source)
            if other is not source:
                raise UsageError(
                    f"{other.path} and {source.path} are both model {source.name!r}, version {source.version};"
                    " rename one of them"
                )
    return list(sources.values())


def _sources_in(repository: Path) -> Iterator[ModelSource]:
    folders = sorted(f for f in repository.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise ModelFileError(f"model repository {repository} is empty; its layout is NAME/VERSION/{_FILE_NAME}")
    for folder in folders:
        versions = [v for v in folder.iterdir() if _VERSION.fullmatch(v.name) and (v / _FILE_NAME).is_file()]
        if not versions:
            raise ModelFileError(
                f"{folder} in model repository {repository} holds no version; put the model at {folder}/1/{_FILE_NAME}"
            )
        for version in sorted(versions, key=lambda v: int(v.name)):
            yield ModelSource(folder.name, version.name, version / _FILE_NAME)


class ModelRegistry:
    """Open models, found by name and version.

    Args:
        models: At least one, no two of one name and version.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = sorted(models, key=lambda m: (m.name, int(m.version)))

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """All models by name, then by ascending version."""
        return tuple(self._models)

    def find(self, name: str, version: str) -> ServedModel:
        """Return a model.

        Args:
            name: Its name; empty where all models have one name.
            version: Its version; empty takes the highest.

        Raises:
            ModelNotFoundError: There is no such model; the message lists those there are.
        """
        names = list(dict.fromkeys(m.name for m in self._models))
        if not name and len(names) > 1:
            raise ModelNotFoundError(f"no model was named and there are several; name one of {', '.join(names)}")
        wanted = name or names[0]
        versions = {m.version: m for m in self._models if m.name == wanted}  # ascending
        if not versions:
            raise ModelNotFoundError(f"no model {name!r} on this server; there are {', '.join(names)}")
        if version and version not in versions:
            raise ModelNotFoundError(f"no version {version!r} of model {wanted!r}; there are {', '.join(versions)}")
        return versions[version or list(versions)[-1]]

    def close(self) -> None:
        """Stop the models' executors."""
        for model in self._models:
            model.executor.close()


def open_models(paths: Sequence[Path], device: str = "auto", threads: int = 0) -> ModelRegistry:
    """Open model files and repositories.

    Args:
        paths: Model files and repositories, as for `find_sources`.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`.
        threads: CPU threads within an operator; 0 takes one per physical core.

    Raises:
        ModelFileError: One of them is not a valid model.
        UsageError: Two paths stand for the same model and version.
        DeviceError: The device cannot run one of them.
    """
    return ModelRegistry([_serve(source, load(source.path, device, threads)) for source in find_sources(paths)])


def _serve(source: ModelSource, segmenter: Segmenter) -> ServedModel:
    executor = ModelExecutor(segmenter, f"{source.name}-{source.version}")
    return ServedModel(source.name, source.version, segmenter.info, segmenter.device, executor)

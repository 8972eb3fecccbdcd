"""The models that a server holds, by name and version."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from fcnseg.cuda_driver import device_memory
from fcnseg.devices import resolve_device
from fcnseg.engine import EngineOptions
from fcnseg.errors import FcnsegError, ModelFileError, ModelNotFoundError
from fcnseg.segmenter import Segmenter, load
from fcnseg.words import first_of
from serving.admission import Admission
from serving.batcher import Batcher
from serving.drift import Drift
from serving.errors import StoppingError, quote
from serving.file_stamp import FileStamp, access_of, stamp_of
from serving.memory import MemoryBudget, machine_memory
from serving.repository import Faults, ModelSource, find_sources
from serving.served_model import DEFAULT_CONFIG, ModelConfig, ServedModel, Users
from serving.statistics import Statistics

_LONGEST_DRAIN_S = 30.0
_MOST_NAMED = 20
_MOST_TRIES = 3
# Until a model that could not be opened is tried again, though its files are as they were.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0

_log = logging.getLogger(__name__)

_Contents: TypeAlias = tuple[tuple[str, FileStamp], ...]
"""Versions of a model and what their files are."""
_Attempt: TypeAlias = tuple[_Contents, tuple[int | None, ...]]
"""The versions to be served, and when the inodes of their files last changed, so that changed permissions count too."""


@dataclass(frozen=True)
class _Failure:
    """An attempt that failed, its pause, and the time on the monotonic clock from which on it is repeated."""

    attempt: _Attempt
    pause_s: float
    again_at: float


def _listed(names: Collection[str]) -> str:
    return first_of(names, _MOST_NAMED) or "none"


class ModelRegistry:
    """Open models, found by name and version; threads may share it.

    Args:
        paths: Model files and repositories, as for `find_sources`; all of their models are opened.
        config: How they are opened and run.
        open_segmenter: Opens a model file, as `fcnseg.segmenter.load`.
        strict: Whether all of them must open; otherwise one is enough, and the failures of the others are logged.

    Attributes:
        held: Memory budget for the images of all requests.
        running: Memory budget for the runs of all models.

    Raises:
        ModelFileError: One of them is not a valid model.
        UsageError: Two paths stand for the same model and version.
        DeviceError: The device cannot run one of them.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        config: ModelConfig = DEFAULT_CONFIG,
        open_segmenter: Callable[..., Segmenter] = load,
        *,
        strict: bool = True,
    ) -> None:
        budget = (config.max_memory or machine_memory() // 2) // 2 // config.sharers
        on_device = 0 if config.max_memory else device_memory(resolve_device(config.device)) // 2 // config.sharers
        self.held, self.running = MemoryBudget(budget), MemoryBudget(on_device or budget)
        self._paths = tuple(paths)
        self._config = config
        self._open_segmenter = open_segmenter
        self._changing = threading.Lock()  # held for as long as models are opened and closed
        self._finding = threading.Lock()  # held for a moment
        self._closing = threading.Event()
        self._models: dict[str, dict[str, ServedModel]] = {}  # by name and version, in their order; never changed
        self._failed: dict[str, _Failure] = {}
        self._unopened: frozenset[str] = frozenset()
        try:
            self._open_all(strict=strict)
        except Exception:
            self.close()
            raise

    def _open_all(self, *, strict: bool) -> None:
        faults: Faults = {}
        sources = find_sources(self._paths, None if strict else faults)
        errors: list[Exception] = [*faults.values()]
        self._unopened |= faults.keys()
        for name, fault in faults.items():
            _log.warning("model %r is not served: %s", name, fault)
        for source in sources:
            try:
                self._swap((*self.models, self._open(source)))
            except Exception as error:
                if strict:
                    raise
                errors.append(error)
                self._unopened |= {source.name}
                _log.warning("model %r, version %s is not served: %s", source.name, source.version, error)
        if not self._models:
            find_sources(self._paths)  # says what is missing
            raise errors[0]

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """All open models by name, then by ascending version."""
        return tuple(model for versions in self._models.values() for model in versions.values())

    @property
    def unopened(self) -> frozenset[str]:
        """Names of the models with a file that could not be opened at the last try; what was served before still is.

        A model that is unloaded, or found to be gone, is removed from them.
        """
        return self._unopened

    def sources(self) -> list[ModelSource]:
        """Return the models that the paths contain now, open or not, without those whose folders cannot be read."""
        return find_sources(self._paths, {})

    def sources_of(self, name: str) -> list[ModelSource]:
        """Return the versions of a model that the paths contain now, open or not.

        Raises:
            ModelNotFoundError: There are none.
            ModelFileError: The model's folder, or a path, cannot be read.
        """
        faults: Faults = {}
        sources = find_sources(self._paths, faults)
        if name in faults:
            raise faults[name]
        found = [source for source in sources if source.name == name]
        if not found:
            raise ModelNotFoundError(f"no model {quote(name)} in the repository")
        return found

    def find(self, name: str, version: str) -> ServedModel:
        """Return an open model.

        Args:
            name: Its name; empty where all models have one name.
            version: Its version; empty takes the highest.

        Raises:
            ModelNotFoundError: There is no such model; the message lists those there are.
        """
        models = self._models
        if not name and len(models) != 1:
            remedy = "; name one of them" if models else ""
            raise ModelNotFoundError(f"no model was named, and this server serves {_listed(models)}{remedy}")
        wanted = name or next(iter(models))
        if wanted not in models:
            raise ModelNotFoundError(f"no model {quote(name)} on this server, which serves {_listed(models)}")
        versions = models[wanted]
        if version and version not in versions:
            raise ModelNotFoundError(
                f"no version {quote(version)} of model {wanted!r}, whose versions are {_listed(versions)}"
            )
        return versions[version or next(reversed(versions))]

    def warm(self) -> None:
        """Run every model on the sizes to warm, so that the first requests are as fast as later ones."""
        for model in self.models:
            model.batcher.warm(self._config.warm_sizes, self._closing.is_set)

    @contextmanager
    def using(self, name: str, version: str) -> Iterator[ServedModel]:
        """Find a model like `find`, and keep it open until the block ends.

        Raises:
            ModelNotFoundError: There is no such model.
        """
        with self._finding:
            model = self.find(name, version)
            model.users.enter()
        try:
            yield model
        finally:
            model.users.leave()

    def load(self, name: str) -> None:
        """Bring a model up to date with the paths, without failing a request.

        New versions, and those whose files have changed, are opened and warmed, and then replace the old ones, which
        are closed when no request uses them any more. If one cannot be opened, nothing changes.

        Raises:
            ModelNotFoundError: The paths hold no such model.
            ModelFileError: One of its files is not a valid model.
            DeviceError: The device cannot run it.
            StoppingError: The server is stopping.
        """
        with self._changing:
            self._replace(name, self._sources_to_open(name))

    def reload(self, name: str) -> None:
        """Open the files of a model that is served again, changed or not; otherwise like `load`.

        Raises:
            ModelNotFoundError: No such model is open, or the paths no longer hold it.
            ModelFileError: One of its files is not a valid model.
            DeviceError: The device cannot run it.
            StoppingError: The server is stopping.
        """
        with self._changing:
            self.find(name, "")
            self._replace(name, self._sources_to_open(name), anew=True)

    def unload(self, name: str, version: str = "") -> None:
        """Take a model out of service, and close it when its current requests are done.

        Args:
            name: Its name.
            version: Its version; empty for all versions.

        Raises:
            ModelNotFoundError: There is no such model or version.
        """
        with self._changing:
            left = [m for m in self._versions_of(name) if version and m.version != version]
            if not left:
                self._unopened -= {name}  # whether or not it was open, it is not wanted any more
            self.find(name, version)
            self._serve(name, left)

    def refresh(self) -> None:
        """Bring all models up to date with the paths; a model that cannot be opened is logged once and stays as it was.

        Such a model is tried again when its files have changed, and otherwise with exponential backoff, since the cause
        may have passed, such as too little memory or too many open files. Nothing is raised: this is called
        periodically, and must go on to be, whatever a file does to the runtime.
        """
        with self._changing:
            faults: Faults = {}
            try:
                sources = find_sources(self._paths, faults)
            except FcnsegError as error:
                self._log_failure("", (((str(error), None),), ()), error)
                return
            there: dict[str, list[ModelSource]] = {name: [] for name in self._models}
            for source in sources:
                there.setdefault(source.name, []).append(source)
            known = there.keys() | faults.keys()
            self._failed = {name: failure for name, failure in self._failed.items() if name in known}
            self._unopened = self._unopened & known | faults.keys()
            for name, fault in faults.items():
                there.pop(name, None)
                self._log_failure(name, (((str(fault), None),), ()), fault)
            for name, found in there.items():
                if self._closing.is_set():
                    return
                contents = tuple((source.version, stamp_of(source.path)) for source in found)
                served = tuple((model.version, model.stamp) for model in self._versions_of(name))
                if contents == served:
                    self._unopened -= {name}
                attempt = contents, tuple(access_of(source.path) for source in found)
                if contents == served or self._is_too_soon(name, attempt):
                    continue
                try:
                    self._replace(name, found)
                except Exception as error:  # noqa: BLE001 - onnxruntime's have no base
                    self._log_failure(name, attempt, error)
                else:
                    self._failed.pop(name, None)

    def stop_opening(self) -> None:
        """Open no more models; one that is being opened is dropped, and those that are served stay."""
        self._closing.set()

    def close(self) -> None:
        """Stop the models' batchers; waiting images are refused, and no more models are opened."""
        self.stop_opening()
        with self._changing:
            for model in self.models:
                model.batcher.close()

    def _versions_of(self, name: str) -> list[ServedModel]:
        return list(self._models.get(name, {}).values())

    def _sources_to_open(self, name: str) -> list[ModelSource]:
        """Return what `sources_of` does; if the model is gone, it no longer counts as one that could not be opened."""
        try:
            return self.sources_of(name)
        except ModelNotFoundError:
            self._unopened -= {name}
            raise

    def _replace(self, name: str, sources: Sequence[ModelSource], *, anew: bool = False) -> None:
        """Open these versions of a model, unless they are open already, and serve them instead of the current ones.

        Args:
            name: The model.
            sources: Its versions.
            anew: Whether to reopen versions that are open already.
        """
        old = self._versions_of(name)
        open_files = {} if anew else {(model.version, model.stamp): model for model in old}
        versions: list[ServedModel] = []
        try:
            for source in sources:
                self._require_open()
                model = open_files.get((source.version, stamp_of(source.path))) or self._open(source)
                versions.append(model)
                if model not in old:
                    model.batcher.warm(self._config.warm_sizes, self._closing.is_set)
                    self._require_open()
        except Exception:
            self._unopened |= {name}
            self._retire([model for model in versions if model not in old])
            raise
        self._unopened -= {name}
        self._serve(name, versions)

    def _require_open(self) -> None:
        if self._closing.is_set():
            raise StoppingError("the server is stopping; ask another to open the model")

    def _serve(self, name: str, versions: Sequence[ServedModel]) -> None:
        """Serve these open versions of a model instead of the current ones, which are closed when no longer used."""
        old = self._versions_of(name)
        self._swap((*(model for model in self.models if model.name != name), *versions))
        if [*versions] != old:
            numbers = ", ".join(model.version for model in versions)
            _log.info("model %r: %s", name, f"serving versions {numbers}" if versions else "no longer served")
        self._retire([model for model in old if model not in versions])

    def _swap(self, models: Sequence[ServedModel]) -> None:
        by_name: dict[str, dict[str, ServedModel]] = {}
        for model in sorted(models, key=lambda m: (m.name, int(m.version))):
            by_name.setdefault(model.name, {})[model.version] = model
        with self._finding:
            self._models = by_name

    @staticmethod
    def _retire(models: Sequence[ServedModel]) -> None:
        for model in models:
            model.users.wait_until_none(_LONGEST_DRAIN_S)
            model.batcher.close()
            model.engine.close()

    def _is_too_soon(self, name: str, attempt: _Attempt) -> bool:
        """Tell whether this same attempt has failed, and its pause is not over yet."""
        last = self._failed.get(name)
        return last is not None and last.attempt == attempt and time.monotonic() < last.again_at

    def _log_failure(self, name: str, attempt: _Attempt, error: Exception) -> None:
        """Remember that an attempt has failed, and log it unless the same attempt failed before."""
        last, pause_s = self._failed.get(name), _FIRST_PAUSE_S
        if last is not None and last.attempt == attempt:
            pause_s = min(2 * last.pause_s, _LONGEST_PAUSE_S)
        else:
            fault = None if isinstance(error, FcnsegError) else error
            level = logging.WARNING if fault is None else logging.ERROR
            _log.log(level, "the models stay as they were: %s", error, exc_info=fault)
        self._failed[name] = _Failure(attempt, pause_s, time.monotonic() + pause_s)

    def _open(self, source: ModelSource) -> ServedModel:
        options, batching = self._config.for_model(source.path)
        segmenter, stamp = self._open_unchanged(source.path, replace(options, prove=True))
        statistics = Statistics()
        name = f"{source.name}-{source.version}"
        batcher = Batcher(segmenter, batching, self.running, name, statistics.ran)
        admission = Admission(batcher, self.held)
        return ServedModel(
            source.name, source.version, segmenter.engine, batcher, admission, statistics, Drift(), stamp, Users()
        )

    def _open_unchanged(self, path: Path, options: EngineOptions) -> tuple[Segmenter, FileStamp]:
        """Open a file, make sure that it did not change meanwhile, and return its stamp too.

        The file is opened more than once, for single runs and for runs side by side: if it were replaced in between,
        these sessions would belong to two different models.

        Raises:
            ModelFileError: It is not a valid model, or it changed during every try.
        """
        for _ in range(_MOST_TRIES):
            stamp = stamp_of(path)
            segmenter = self._open_segmenter(path, self._config.device, options=options)
            if stamp_of(path) == stamp:
                return segmenter, stamp
            segmenter.engine.close()
        raise ModelFileError(f"{path} was changed while it was opened; load it when it is complete")

"""Measured settings, stored in a file beside the model: `MODEL.tune.json`.

They apply to one model on one machine, which the file names; anywhere else the file is ignored, and this is logged.
None of the settings changes an answer on the CPU.
"""

import logging
import platform
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import onnxruntime
from pydantic import Field, TypeAdapter, ValidationError

from fcnseg.cores import MOST_THREADS, physical_cores, usable_cores
from fcnseg.cuda_driver import device_name
from fcnseg.engine import PIPELINE_OPTIONS, EngineOptions
from fcnseg.files import sha256_of, shown, write_text

Objective = Literal["latency", "throughput"]

_LARGEST_FILE = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The settings that tuning chooses; None for those that are not set.

    Attributes:
        threads: CPU threads per operator, which concurrent runs divide; 0 uses one per physical core.
        spinning: Whether idle CPU threads busy-wait for a moment.
        runners: Concurrent runs of the model, in a server or a folder's job.
        max_batch: Most images per run.
    """

    threads: Annotated[int, Field(ge=0, le=MOST_THREADS)] | None = None
    spinning: bool | None = None
    runners: Annotated[int, Field(ge=1, le=64)] | None = None
    max_batch: Annotated[int, Field(ge=1, le=1024)] | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.said().items()) or "the defaults"

    def said(self) -> dict[str, Any]:
        """Return the settings that are set, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def over(self, others: "Settings") -> "Settings":
        """Return these settings, with those of others where these are not set."""
        return replace(others, **self.said())

    def beside(self, others: "Settings") -> "Settings":
        """Return the settings that differ from others; the rest is not set."""
        theirs = others.said()
        return Settings(**{name: value for name, value in self.said().items() if value != theirs.get(name)})

    def with_runs(self, runners: int) -> "Settings":
        """Return what applies with this many runners: threads were measured together with their number of runners."""
        return self if (self.runners or 1) == runners else replace(self, threads=None, runners=None)

    def engine_options(self, options: EngineOptions) -> EngineOptions:
        """Return options in which the settings that are set replace the given ones."""
        said = self.said()
        return replace(options, **{name: said[name] for name in ("threads", "spinning") if name in said})


NOTHING_SAID = Settings()


def default_settings(device: str) -> Settings:
    """Return the default settings of a server and a folder's job; `device` is `cpu` or `cuda:N`."""
    # On the CPU a batch takes as long as its images one by one; on CUDA one is copied while another is computed.
    runners, batch = (min(2, physical_cores()), 1) if device == "cpu" else (2, 8)
    return Settings(threads=0, spinning=PIPELINE_OPTIONS.spinning, runners=runners, max_batch=batch)


@dataclass(frozen=True)
class Machine:
    """The machine and software that a measurement applies to.

    Attributes:
        cpu: The CPU's name.
        cores: CPUs that this process may use.
        onnxruntime: The version of onnxruntime.
        device: `cpu` or `cuda:N`.
        device_name: The GPU's name; empty for the CPU.
    """

    cpu: str
    cores: int
    onnxruntime: str
    device: str
    device_name: str


def this_machine(device: str) -> Machine:
    """Return this machine and its software; `device` is `cpu` or `cuda:N`."""
    return Machine(_cpu_name(), usable_cores(), onnxruntime.__version__, device, device_name(device))


@dataclass(frozen=True)
class Measurement:
    """The result of a setting compared with the best before it.

    Attributes:
        settings: The setting.
        images_per_s: Images answered a second, the median of the rounds.
        gain: Its speed over that of the setting it was compared with, the median over the rounds.
        spread: The interquartile range of these ratios.
        won: Whether it became the best.
    """

    settings: Settings
    images_per_s: float
    gain: float
    spread: float
    won: bool


@dataclass(frozen=True)
class Tuning:
    """The result of tuning a model on a machine.

    Attributes:
        model_sha256: Of the model file.
        machine: The machine and software that it applies to.
        objective: What was optimised: the shortest answer to one client, or the most images of many clients.
        sizes: (height, width) of the images.
        settings: The settings that beat the server's default; the rest is not set.
        measurements: All settings that were tried.
        format: Version of this file.
    """

    model_sha256: str
    machine: Machine
    objective: Objective
    sizes: tuple[tuple[int, int], ...]
    settings: Settings
    measurements: tuple[Measurement, ...]
    format: Annotated[int, Field(ge=2, le=2)] = 2

    def write(self, model: Path) -> Path:
        """Write the file beside a model, and return its path.

        Raises:
            OSError: The file cannot be written.
        """
        path = tuning_path(model)
        write_text(path, _ADAPTER.dump_json(self, indent=1).decode() + "\n")
        return path


_ADAPTER = TypeAdapter(Tuning)


def tuning_path(model: Path) -> Path:
    """Return the path of a model file's settings."""
    return model.with_name(f"{model.name}.tune.json")


def tuned_settings(model: Path, device: str) -> Settings:
    """Return the settings found for a model on this machine; empty if there are none, or they cannot be used.

    Args:
        model: The model file.
        device: `cpu` or `cuda:N`.
    """
    if not model.is_file() or not (path := tuning_path(model)).is_file():
        return NOTHING_SAID
    try:
        with path.open("rb") as file:
            tuning = _ADAPTER.validate_json(file.read(_LARGEST_FILE))
        why = _why_not(tuning, model, device)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        why = f"it is not valid at {where}: {first['msg']}"
    except OSError as error:
        why = f"it cannot be read: {error.strerror}"
    if why:
        _log.warning("%s is not used: %s; run 'fcnseg tune' again, or remove it", shown(path), why)
        return NOTHING_SAID
    _log.info("%s: %s", shown(path), tuning.settings)
    return tuning.settings


def _why_not(tuning: Tuning, model: Path, device: str) -> str:
    """Return why settings do not apply to a model here; empty if they do."""
    here = this_machine(device)
    for field in fields(Machine):
        there, now = getattr(tuning.machine, field.name), getattr(here, field.name)
        if there != now:
            return f"it was measured elsewhere ({field.name.replace('_', ' ')} {there!r}, here {now!r})"
    if tuning.model_sha256 != sha256_of(model):
        return "it was measured with another model file"
    return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, platform.machine())

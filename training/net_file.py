"""Load a custom classifier from a Python file, by the class or function in it that makes the net."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from fcnseg.errors import ArchitectureError

_SUFFIX = ".py"


def is_net_file(architecture: str) -> bool:
    """Tell whether an architecture has the form FILE.py or FILE.py:NAME."""
    return _split(architecture)[0].endswith(_SUFFIX)


def build_net(architecture: str) -> nn.Module:
    """Build the net that FILE.py:NAME names, by executing the file.

    Args:
        architecture: FILE.py:NAME, where NAME is a module, or a class or function that returns one when it is called
            without arguments; FILE.py alone if it defines a single module class.

    Raises:
        ArchitectureError: The file cannot be executed, or NAME does not give a module.
    """
    file, name = _split(architecture)
    module = _run(Path(file))
    name = name or _only_class(module, file)
    if not hasattr(module, name):
        raise ArchitectureError(f"{file} defines no {name!r}; {_defined(module)}")
    made = getattr(module, name)
    if not isinstance(made, nn.Module):
        try:
            made = made()
        except Exception as error:  # whatever a foreign constructor raises
            raise ArchitectureError(f"{architecture} cannot be called without arguments: {error}") from error
    if not isinstance(made, nn.Module):
        raise ArchitectureError(f"{architecture} makes a {type(made).__name__}, not a torch.nn.Module")
    return made


def without_folder(architecture: str) -> str:
    """Return an architecture without its file's folder, which is private to this machine."""
    file, name = _split(architecture)
    if not is_net_file(architecture):
        return architecture
    return f"{Path(file).name}:{name}" if name else Path(file).name


def _split(architecture: str) -> tuple[str, str]:
    file, _, name = architecture.rpartition(":")
    return (file, name) if file.endswith(_SUFFIX) else (architecture, "")


def _run(file: Path) -> ModuleType:
    if not file.is_file():
        raise ArchitectureError(f"file {file} does not exist; name a Python file and the net in it, FILE.py:NAME")
    spec = importlib.util.spec_from_file_location(f"fcnseg_net_file_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ArchitectureError(f"{file} is no Python file; name a Python file and the net in it, FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look up their module there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a foreign file raises
        raise ArchitectureError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _only_class(module: ModuleType, file: str) -> str:
    names = _classes(module)
    if len(names) != 1:
        raise ArchitectureError(f"which net of {file}? write {file}:NAME; {_defined(module)}")
    return names[0]


def _classes(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    ]


def _defined(module: ModuleType) -> str:
    return f"it defines the modules {', '.join(_classes(module)) or '(none)'}"

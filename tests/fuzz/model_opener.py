"""Opens the model files that stdin names and tells how it went, a line each: in a process of its own, which may die."""

import resource
import sys
from pathlib import Path

import numpy as np

from fcnseg.engine import Engine, EngineOptions
from fcnseg.errors import FcnsegError
from fcnseg.model_file import read_model_info

_MOST_BYTES = 4 << 30
_OPTIONS = EngineOptions(threads=1, spinning=False, prove=True)


def main() -> None:
    """Answer each path with `opened`, `refused` and why, or `fault` and what was raised."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        try:
            read_model_info(path)
            Engine(path, "cpu", _OPTIONS)
        except FcnsegError as error:
            answer = f"refused {error!s}"
        except Exception as error:  # noqa: BLE001 - it is told
            answer = f"fault {type(error).__name__}: {error}"
        else:
            answer = "opened"
        sys.stdout.write(" ".join(answer.split()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    assert np.zeros(1).size  # what is needed is loaded before the first file comes
    main()

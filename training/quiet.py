"""Silence for libraries that tell of their progress, and advise what has been done: exporters and quantisers."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import onnxruntime

_WARNINGS, _ERRORS = 2, 3
"""Levels of onnxruntime's log, which it writes to stderr itself; the first is its default, and it tells none."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what is printed, logged below errors, and warned of, meanwhile."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(_ERRORS)
    with warnings.catch_warnings(), open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):  # noqa: PTH123
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            onnxruntime.set_default_logger_severity(_WARNINGS)
            logging.disable(level)

"""Silence exporters and quantisers, which report progress and give advice that has been followed already."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import onnxruntime

_WARNINGS, _ERRORS = 2, 3
"""Severity levels of onnxruntime's log, which it writes to stderr itself: its default, and the one set meanwhile."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress printed output, log messages below errors, and warnings within the context."""
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

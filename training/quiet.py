"""Silence for libraries that tell of their progress, and advise what has been done: exporters and quantisers."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what is printed, logged below errors, and warned of, meanwhile."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):  # noqa: PTH123
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)

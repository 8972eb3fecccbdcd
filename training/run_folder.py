"""The folder of a training run; torch is not needed to read it.

RUN/config.yaml         the run's configuration; 'fcnseg train --config' repeats the run
RUN/environment.json    machine, package versions, the data's fingerprint, and machine and versions of each resumption
RUN/metrics.csv         one row per epoch
RUN/curves.png          the same as a picture
RUN/samples/            image, truth and prediction, every fifth epoch
RUN/tensorboard/        for TensorBoard: loss, learning rate, and every class's IoU
RUN/best.ckpt           the epoch with the best validation mean IoU
RUN/last.ckpt           the last epoch, or where the run was interrupted in the first
RUN/.fcnseg.lock        held while a program trains into the folder
"""

import json
import shutil
from pathlib import Path

from fcnseg.errors import UsageError
from fcnseg.files import is_named_in_utf8, shown

BEST = "best.ckpt"
LAST = "last.ckpt"
CONFIG = "config.yaml"
METRICS = "metrics.csv"
ENVIRONMENT = "environment.json"
CURVES = "curves.png"
SAMPLES = "samples"
TENSORBOARD = "tensorboard"
_LEFT_BEHIND = (BEST, LAST, CONFIG, METRICS, ENVIRONMENT, CURVES, SAMPLES, TENSORBOARD)
UNTOLD = (OSError, ValueError, KeyError, TypeError)
"""Errors when reading an `environment.json` that does not exist or is not a run's."""


def prepare_folder(folder: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Make a run's folder, and remove an earlier run's files from it if that was asked for.

    Args:
        folder: The folder.
        overwrite: Whether to remove all files that have the names of a run's files.
        resume: Whether to remove them if `environment.json` shows that a run wrote them, in order to start that run
            anew, since it finished no epoch.

    Raises:
        UsageError: The folder has such files and they may not be removed, or it is a file, or not named in UTF-8.
    """
    earlier = require_free(folder, overwrite=overwrite, resume=resume)
    folder.mkdir(parents=True, exist_ok=True)
    for path in earlier:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def require_free(folder: Path, *, overwrite: bool, resume: bool = False) -> list[Path]:
    """Check that a run can use a folder, and return the files to remove from it first.

    Args:
        folder: The folder; it need not exist.
        overwrite: As for `prepare_folder`.
        resume: As for `prepare_folder`.

    Raises:
        UsageError: As for `prepare_folder`.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"run folder {folder} is a file; name a folder")
    if not is_named_in_utf8(folder):
        raise UsageError(f"run folder {shown(folder)} is not named in UTF-8, as TensorBoard needs; name another")
    earlier = [folder / name for name in _LEFT_BEHIND if (folder / name).exists()]
    is_run = _is_run(folder)
    if earlier and not overwrite and not (resume and is_run):
        if is_run:
            held, remedy = f"already holds a run ({earlier[0].name})", "add --resume or --overwrite"
        else:
            names = ", ".join(path.name for path in earlier)
            held, remedy = f"holds {names}, and no {ENVIRONMENT} that a run left", "have them removed by --overwrite"
        raise UsageError(f"{folder} {held}; name another folder, or {remedy}")
    return earlier


def _is_run(folder: Path) -> bool:
    """Tell whether a run has begun in a folder; a configuration file alone may have been written by hand."""
    try:
        data_begun_on(folder)
    except UNTOLD:
        return False
    return True


def data_begun_on(folder: Path) -> str:
    """Return the fingerprint of the data that a run was begun on; raise one of `UNTOLD` if it cannot be read."""
    fingerprint: str = json.loads((folder / ENVIRONMENT).read_text("utf-8"))["data_fingerprint"]
    return fingerprint

"""Write files atomically, so that a killed program never leaves a partial file under the final name."""

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fcnseg.errors import UsageError

_HALF = re.compile(r"\..{1,40}\.[0-9a-f]{8}\.part(\.[^.]*)?", re.DOTALL)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends without an error.

    The parent folder is created if it is missing. If the block raises, the temporary file is removed and `path` is
    unchanged.

    Raises:
        UsageError: `path` is a folder, or one of its parents is not a folder.
    """
    require_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix}")
    with named_in_errors(path, temporary):
        # Not tempfile.mkstemp: it makes private files, and the umask for the usual mode cannot be read thread-safely.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def named_in_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Set the file's name in an OSError that has none, such as one from a write, or that names the temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in {None, str(temporary)}:
            error.filename = str(path)
        raise


def remove_halves(folder: Path) -> None:
    """Remove the temporary files of killed programs in a folder; no program may be writing there."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _HALF.fullmatch(path.name):
                path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def real_path(path: Path) -> Path:
    """Resolve the links in a path; cyclic links stay unresolved, where `Path.resolve` would raise."""
    return Path(os.path.realpath(path))


def shown(path: Path) -> str:
    """Return a path for use in a message: quoted if it has line breaks or bytes that are not text."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def printable(text: str) -> str:
    """Escape characters that UTF-8 cannot encode: a file's name need not be valid Unicode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_named_in_utf8(path: Path) -> bool:
    """Tell whether a path is valid Unicode, which libraries outside Python require."""
    return printable(str(path)) == str(path)


def require_place(path: Path, *inputs: Path | None) -> None:
    """Check, before any work is done, that an output file can be written to a path.

    Args:
        path: The output file.
        inputs: Files from which it is made; it must not replace any of them.

    Raises:
        UsageError: `path` is a folder, has a parent that is not a folder, or is one of the inputs.
    """
    if path.is_dir():
        raise UsageError(f"output {path} is a folder; name a file in it")
    ancestor = next(parent for parent in path.absolute().parents if parent.exists())
    if not ancestor.is_dir():
        raise UsageError(f"output {path} cannot be written: {ancestor} is not a folder; choose another place")
    if path.exists() and any(found is not None and found.exists() and path.samefile(found) for found in inputs):
        raise UsageError(f"output {path} would replace an input; name another output")


def require_model_place(path: Path, *inputs: Path | None) -> None:
    """Check, as `require_place` does, that a model file can be written to a path.

    Raises:
        UsageError: As for `require_place`; or the name is not UTF-8, or its suffix is not .onnx, so that no image is
            replaced.
    """
    require_place(path, *inputs)
    if not is_named_in_utf8(path):
        raise UsageError(f"output {shown(path)} is not named in UTF-8, as onnxruntime needs; name another")
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"output {path} is to be a model file; end its name in .onnx")


def require_report_place(path: Path, suffix: str, *inputs: Path, data: Path | None = None) -> None:
    """Check, as `require_place` does, that a report can be written to a path.

    Args:
        path: The report.
        suffix: The suffix that its name must have, so that it replaces no image and no weights.
        inputs: Files from which it is made.
        data: A data folder, whose JSON files describe its images and must not be replaced.

    Raises:
        UsageError: As for `require_place`; or the suffix is another, or the path is a JSON file of the data folder.
    """
    require_place(path, *inputs)
    if path.suffix.lower() != suffix:
        raise UsageError(f"output {path} is to be a report; end its name in {suffix}")
    if data is not None and suffix == ".json" and path.exists() and real_path(path).is_relative_to(real_path(data)):
        raise UsageError(f"output {path} may be a part of {data}; name another place, or remove it first")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically: whole or not at all."""
    write_bytes(path, text.encode())

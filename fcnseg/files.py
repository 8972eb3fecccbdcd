"""Writing files so that a killed program never leaves half of one."""

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

    The parent folder is made where it is missing. When the block raises, the temporary file is removed and `path`
    stays as it was.

    Raises:
        UsageError: `path` is a folder, or lies below something that is none.
    """
    require_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix}")
    with named_in_errors(path, temporary):
        # Not tempfile.mkstemp: its files are private, and the umask that others deserve cannot be read safely in
        # threads.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def named_in_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Put a file's name into each OSError that has none, as those of writing, or that names its temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in {None, str(temporary)}:
            error.filename = str(path)
        raise


def remove_halves(folder: Path) -> None:
    """Remove what killed programs left half written in a folder; nothing may be writing there now."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _HALF.fullmatch(path.name):
                path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def real_path(path: Path) -> Path:
    """Resolve the links in a path; links that form a circle stay, where `Path.resolve` would raise."""
    return Path(os.path.realpath(path))


def shown(path: Path) -> str:
    """Return a path for use in a message: quoted if it has line breaks or bytes that are not text."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def printable(text: str) -> str:
    """Replace what UTF-8 cannot encode by escapes: a file's name need not be valid Unicode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_named_in_utf8(path: Path) -> bool:
    """Whether a path is valid Unicode, which libraries outside of Python require."""
    return printable(str(path)) == str(path)


def require_place(path: Path, *inputs: Path | None) -> None:
    """Check, before any work is done, that an output file can be written to a path.

    Args:
        path: The output file.
        inputs: Files that it is made from, none of which it may replace.

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
        UsageError: As for `require_place`; or the name is not UTF-8, or does not end in .onnx, as an image's would not.
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
        inputs: Files that it is made from.
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
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_bytes(path, text.encode())

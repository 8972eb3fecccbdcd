"""Find the images to segment, and name them."""

import codecs
import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fcnseg import images
from fcnseg.errors import UsageError
from fcnseg.files import real_path, shown

_LIST_SUFFIX = ".txt"
_SEPARATORS = re.escape(os.sep + (os.altsep or ""))
_ANY_FOLDERS = re.compile(rf"(?:^|(?<=[{_SEPARATORS}]))\*\*(?:[{_SEPARATORS}]+|$)")


@dataclass(frozen=True, slots=True)
class InputImage:
    """An image file.

    Attributes:
        path: The file's path.
        name: The path relative to the folder that all inputs have in common, with `/` between folders; the output
            mirrors it.
    """

    path: str
    name: str


@dataclass(frozen=True)
class Inputs:
    """The images of a job.

    Attributes:
        images: At least one image, in the order in which they are segmented: by path, or in the order of a list file.
        single: Whether the user named a single image file as the input.
    """

    images: list[InputImage]
    single: bool = False


def find_inputs(source: str | Path, output: Path) -> Inputs:
    """Find the images of an input.

    Args:
        source: An image file; a folder, which is searched at any depth for the suffixes `images.SUFFIXES`; a pattern
            such as `photos/**/*.jpg`; or a text file (.txt) with a path in each line, relative to its own folder.
            Hidden files are left out unless a list names them. Links to folders are not followed, since they may form
            cycles, unless the source names them.
        output: The folder for the masks; files in it are not inputs.

    Raises:
        UsageError: There is no image, a folder cannot be read, or the output is the input folder.
    """
    path = Path(source)
    if not str(source):
        raise UsageError("the input's name is empty; name an image file or a folder of images")
    if path.suffix.lower() == _LIST_SUFFIX and path.is_file():
        return Inputs(_read_list(path))
    if path.is_file():
        return Inputs([InputImage(str(path), path.name)], single=True)
    if path.is_dir():
        return Inputs(_search(path, output))
    if path.exists():
        raise UsageError(f"input {source} is neither a file nor a folder; name an image file or a folder of images")
    if not glob.has_magic(str(source)):
        raise UsageError(f"input {source} does not exist; name an image file or a folder of images")
    return Inputs(_match(str(source), output))


def _search(folder: Path, output: Path) -> list[InputImage]:
    """Find the images of a folder, by path."""
    excluded = real_path(output)
    _require_other(output, excluded, real_path(folder))
    found = []
    for parent, subfolders, files in _walk(str(folder)):
        subfolders[:] = [name for name in subfolders if real_path(Path(parent, name)) != excluded]
        found += [os.path.join(parent, name) for name in files if _is_image(os.path.join(parent, name))]  # noqa: PTH118
    if not found:
        raise UsageError(
            f"no images in {folder}; looked, at any depth but not behind links to folders, for {_wanted()}"
        )
    return _named(sorted(found, key=_by_folder), str(folder))


def _require_other(output: Path, real_output: Path, real_input: Path) -> None:
    if real_output == real_input:
        raise UsageError(
            f"output {output} is the input folder, where masks would be taken for images next time; name another"
        )


def _match(pattern: str, output: Path) -> list[InputImage]:
    """Find the images that a pattern matches, by path."""
    fixed = os.path.dirname(pattern[: _first_magic(pattern)])  # noqa: PTH120 - '' stands for here
    start, excluded = real_path(Path(fixed)), real_path(output)
    _require_other(output, excluded, start)
    found = [path for path in _expand(pattern) if _is_image(path)]
    if start in excluded.parents:
        found = [path for path in found if excluded not in real_path(Path(path)).parents]
    if not found:
        raise UsageError(f"no images match {pattern}; looked for {_wanted()}")
    return _named(sorted(set(found), key=_by_folder), fixed)


def _expand(pattern: str) -> Iterator[str]:
    """Yield the matches of a pattern; `**` matches any folders, or none, but unlike glob's does not follow links."""
    any_folders = _ANY_FOLDERS.search(pattern)
    if any_folders is None:
        yield from glob.iglob(pattern)  # noqa: PTH207 - the pattern may be absolute
        return
    above, below = pattern[: any_folders.start()], pattern[any_folders.end() :] or "*"
    for top in glob.iglob(above) if above else [""]:  # noqa: PTH207
        for parent, _, _ in _walk(top or os.curdir):
            folder = parent if top else os.path.normpath(parent)
            folder = "" if folder == os.curdir else glob.escape(folder)
            yield from _expand(os.path.join(folder, below))  # noqa: PTH118


def _walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk down a tree as `os.walk` does, but skip hidden folders and fail at a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise UsageError(
            f"folder {shown(Path(error.filename))} cannot be read: {error.strerror}; let this user read it, or name the"
            " images in a list"
        ) from error

    for parent, subfolders, files in os.walk(folder, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield parent, subfolders, files


def _read_list(path: Path) -> list[InputImage]:
    """Read a text file that names an image in each line; keep its order and skip empty lines."""
    root = os.path.normpath(path.parent.absolute())
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if b"\0" in content:
        raise UsageError(f"list {path} holds a zero byte, which no path has; write a path in each line (find -print)")
    lines = (line.strip() for line in content.splitlines())
    named = list(dict.fromkeys(os.path.normpath(Path(root, os.fsdecode(line))) for line in lines if line))
    if not named:
        raise UsageError(f"list {path} names no image; write a path in each line")
    if not all(Path(found).is_relative_to(root) for found in named):
        root = os.path.commonpath([Path(found).parent for found in named])
    return _named(named, root)


def _named(paths: Iterable[str], root: str) -> list[InputImage]:
    start = root or "."
    return [InputImage(path, os.path.relpath(path, start).replace(os.sep, "/")) for path in paths]


def _by_folder(path: str) -> list[str]:
    """Return a sort key that keeps the files of a folder together."""
    return path.split(os.sep)  # noqa: PTH206 - a million Paths take a gigabyte


def _is_image(path: str) -> bool:
    """Tell whether a path has an image's suffix and is a regular file, not a pipe, on which reading would block.

    A dangling link counts too: if it were left out, nobody would notice the missing image.
    """
    name = os.path.basename(path)  # noqa: PTH119
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    if suffix not in images.SUFFIXES or name.startswith("."):
        return False
    return os.path.isfile(path) or not os.path.exists(path)  # noqa: PTH113, PTH110


def _first_magic(pattern: str) -> int:
    return min(pattern.find(character) for character in "*?[" if character in pattern)


def _wanted() -> str:
    return f"files ending in {', '.join(images.SUFFIXES)}"

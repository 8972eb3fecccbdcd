"""What an earlier job wrote for the images of one that takes its place, and that one does not write.

An image fails now, or its mask is of another kind: the earlier job's files would stand among the new one's. They are
there until the new job is done, so that one which is ended early loses none.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fcnseg.files import real_path
from fcnseg.folder.manifest import Manifest, Row, read_rows
from fcnseg.folder.names import EARLIER, MANIFEST


def put_aside(output: Path) -> None:
    """Keep the manifest of a job whose place is taken, beside those of others that were not outlived by their heirs."""
    manifest, earlier = output / MANIFEST, output / EARLIER
    if not manifest.exists():
        return
    if not earlier.exists():
        manifest.replace(earlier)
        return
    with manifest.open("rb") as source, earlier.open("ab") as target:
        target.write(b"\n")  # ends what a killed program left half written
        shutil.copyfileobj(source, target)
    manifest.unlink()


def remove_outlived(output: Path, manifest: Manifest) -> None:
    """Remove what earlier jobs wrote for images of one that is done, and that one did not.

    Args:
        output: The output folder of the jobs.
        manifest: The manifest of the job that is done.
    """
    earlier = output / EARLIER
    if not earlier.exists():
        return
    outlived = {
        name
        for row in _rows(earlier)
        if (now := manifest.row(row.image)) is not None
        for name in _written(row) - _written(now)
    }
    if outlived:
        for row in read_rows(output / MANIFEST):  # by the name of another image, say
            outlived -= _written(row)
    folder = real_path(output)
    for path in (output / name for name in sorted(outlived)):
        if real_path(path.parent).is_relative_to(folder) and not path.is_dir():
            path.unlink(missing_ok=True)
    earlier.unlink()


def _rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError):  # half a line
                yield Row.of(line)


def _written(row: Row) -> set[str]:
    return {name for name in (row.mask, *row.files) if isinstance(name, str)}

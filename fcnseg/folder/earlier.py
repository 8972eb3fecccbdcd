"""Remove the outdated files of an earlier job in the same output folder that the new job has not replaced.

If an image now fails, or its mask has another format, the earlier job's files would remain among those of the new job.
They are removed only when the new job is done, so that a job which is interrupted loses none of them.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fcnseg.files import real_path
from fcnseg.folder.manifest import Manifest, Row, read_rows
from fcnseg.folder.names import EARLIER, MANIFEST


def put_aside(output: Path) -> None:
    """Rename the manifest of a replaced job, or append it to those of jobs whose files have not been removed yet."""
    manifest, earlier = output / MANIFEST, output / EARLIER
    if not manifest.exists():
        return
    if not earlier.exists():
        manifest.replace(earlier)
        return
    with manifest.open("rb") as source, earlier.open("ab") as target:
        target.write(b"\n")  # ends a line that a killed program left incomplete
        shutil.copyfileobj(source, target)
    manifest.unlink()


def remove_outlived(output: Path, manifest: Manifest) -> None:
    """Remove files that earlier jobs wrote for images of the finished job and that the finished job did not write.

    Args:
        output: The output folder of the jobs.
        manifest: The manifest of the finished job.
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
        for row in read_rows(output / MANIFEST):  # keep files that the new job wrote, perhaps for other images
            outlived -= _written(row)
    folder = real_path(output)
    for path in (output / name for name in sorted(outlived)):
        if real_path(path.parent).is_relative_to(folder) and not path.is_dir():
            path.unlink(missing_ok=True)
    earlier.unlink()


def _rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError):  # an incomplete line
                yield Row.of(line)


def _written(row: Row) -> set[str]:
    return {name for name in (row.mask, *row.files) if isinstance(name, str)}

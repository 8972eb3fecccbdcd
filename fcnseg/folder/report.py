"""A job's report: one self-contained HTML page, without scripts, other files or network access."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fcnseg import images, render
from fcnseg.errors import ImageError, MaskError
from fcnseg.files import write_bytes
from fcnseg.folder import mask_files
from fcnseg.folder.manifest import Row, read_rows
from fcnseg.folder.names import MANIFEST
from fcnseg.folder.options import FolderOptions
from fcnseg.folder.plan import Plan
from fcnseg.folder.totals import Totals
from fcnseg.page import render_page
from fcnseg.thumbnails import data_uri, shrink
from fcnseg.types import Colour, LabelMap

_THUMBNAILS = 24
_LONGER_SIDE = 320
_MOST_PIXELS = 1 << 25  # thumbnails of larger images would take too much time and memory
_BARS = 40


@dataclass(frozen=True)
class _Bar:
    name: str
    colour: Colour
    share: float
    pixels: int
    images: int


def write_report(path: Path, plan: Plan, options: FolderOptions, label_map: LabelMap, model: str, at: str) -> Totals:
    """Write the page of a job whose manifest is complete.

    Args:
        path: The file.
        plan: The job's plan.
        options: The job's options.
        label_map: Gives names and colours.
        model: The model's name, for people.
        at: Where the model ran, for people.

    Returns:
        The totals shown on the page.
    """
    manifest = plan.output / MANIFEST
    totals = Totals.of(read_rows(manifest))
    all_pixels = max(1, totals.pixels.total())
    bars = [
        _Bar(
            label_map.classes[index].name,
            label_map.classes[index].colour,
            pixels / all_pixels,
            pixels,
            totals.images[index],
        )
        for index, pixels in totals.pixels.most_common(_BARS)
    ]
    most = max(1, *totals.largest)
    width = 100 // len(totals.largest)
    page = render_page(
        "fcnseg.folder",
        "report.html.jinja",
        model=model,
        at=at,
        label_map_hash=label_map.hash,
        totals=totals,
        headline=[
            ("Images", f"{totals.done:,}", "have a mask"),
            ("Failures", f"{totals.failed:,}", "have none"),
            ("Pixels", f"{totals.pixels.total() / 1e6:,.1f} M", "of all masks"),
            ("Classes", f"{len(totals.pixels)}", f"of {len(label_map)} are present"),
        ],
        bars=bars,
        bars_left_out=len(totals.pixels) - len(bars),
        histogram=[
            (f"{i * width} to {(i + 1) * width} %", count, count / most) for i, count in enumerate(totals.largest)
        ],
        thumbnails=list(_thumbnails(plan, options, label_map, totals.done)),
    )
    write_bytes(path, page)
    return totals


def _thumbnails(plan: Plan, options: FolderOptions, label_map: LabelMap, done: int) -> Iterator[tuple[str, str]]:
    """Yield names and pictures of images spread evenly over the list."""
    step = max(1, -(-done // _THUMBNAILS))
    rows = (row for row in read_rows(plan.output / MANIFEST) if row.error is None)
    chosen = {row.image: row for row in islice(rows, 0, None, step)}
    for item in plan.images:
        if (row := chosen.get(item.name)) is not None and (
            picture := _thumbnail(item.image, row, plan, options, label_map)
        ):
            yield item.name, picture


def _thumbnail(image: str, row: Row, plan: Plan, options: FolderOptions, label_map: LabelMap) -> str | None:
    """Return an image tinted with its classes' colours; None if it is too large or has changed."""
    if row.mask is None or (row.height or 0) * (row.width or 0) > _MOST_PIXELS:
        return None
    try:
        class_map = mask_files.read(plan.output / row.mask, plan.mask_format, label_map)
        pixels = images.read(Path(image), options.limits, upright=options.upright)
    except (ImageError, MaskError):
        return None
    if pixels.shape[:2] != class_map.shape:
        return None
    return data_uri(shrink(render.overlay(pixels, class_map, label_map), _LONGER_SIDE), ".jpg")

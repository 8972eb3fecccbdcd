"""The stages of a job: reading, segmenting and writing an image."""

import errno
import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnseg import images, masks, render
from fcnseg.errors import ImageError, ImageTooLargeError, MaskError, one_line
from fcnseg.files import shown, write_bytes
from fcnseg.folder import mask_files
from fcnseg.folder.answers import Answer, WrittenAnswer
from fcnseg.folder.manifest import Row, write_areas, write_peaks
from fcnseg.folder.mask_files import MaskFormat
from fcnseg.folder.memory import OrderedMemory
from fcnseg.folder.models import JobModel, Loaded, Outcome
from fcnseg.folder.options import FolderOptions
from fcnseg.folder.plan import Plan, PlannedImage
from fcnseg.masks import Encoding
from fcnseg.pictures import (
    Pictures,
    confidence_path,
    heatmap_path,
    overlay_path,
    regions_path,
    require_drawable,
    write_jpeg,
    write_regions,
)
from fcnseg.regions import Region
from fcnseg.types import ClassArea, ClassPeak, LabelMap

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentedImage:
    """The outcome for one image.

    Attributes:
        image: The image file.
        row: Its line in the manifest.
        mask: The mask file; None when the image failed.
        pictures: The other files written for the image.
        classes: Classes present with their areas; empty when the image failed.
        top: The most probable classes if `FolderOptions.top` asks for their heatmaps, the most probable first.
        regions: The regions that were asked for, by descending score.
        error: Why the image failed; None when it did not.
        skipped: Whether an earlier run had segmented it; `regions` is then empty, but the file of regions exists.
        notice: A remark on the mask in one line, if the net depends on the whole image but was given tiles; else None.
    """

    image: Path
    row: Row
    mask: Path | None = None
    pictures: tuple[Path, ...] = ()
    classes: tuple[ClassArea, ...] = ()
    top: tuple[ClassPeak, ...] = ()
    regions: tuple[Region, ...] = ()
    error: Exception | None = None
    skipped: bool = False
    notice: str | None = None


class Worker:
    """The stages of a job, for one image or a batch.

    Args:
        plan: The images and the output.
        options: The job's options.
        pictures: Which pictures to write beside masks.
        model: The model.
    """

    def __init__(self, plan: Plan, options: FolderOptions, pictures: Pictures, model: JobModel) -> None:
        self._plan, self._options, self._pictures, self._model = plan, options, pictures, model
        self._memory = OrderedMemory(options.memory_bytes)
        self._ended = threading.Event()
        # A server decodes images itself; pixels are needed here only to draw on, or if the server must not rotate them.
        self._needs_pixels = (
            not model.remote or pictures.overlay or bool(pictures.heatmaps) or bool(pictures.top) or not options.upright
        )

    def end(self) -> None:
        """Finish soon: leave images that take long to the next run."""
        self._ended.set()

    def close(self) -> None:
        """Make every thread that waits for memory stop with an error."""
        self._memory.close()

    def decode(self, numbered: tuple[int, PlannedImage]) -> Loaded:
        """Read an image when there is memory for it."""
        turn, item = numbered
        began = time.perf_counter()
        loaded = Loaded(Path(item.image), self._plan.output / item.mask, ended=self._ended)
        held, taken = 0, False
        try:
            with suppress(OSError):  # reading the file reports the error
                status = os.stat(item.image)  # noqa: PTH116 - a path in text
                loaded.size_bytes, loaded.modified_ns = status.st_size, status.st_mtime_ns
            images.require_file(loaded.source)
            data = images.read_bytes(loaded.source, self._options.limits)
            encoded = images.EncodedImage(data, self._options.limits, upright=self._options.upright)
            held = len(data) + self._model.held_bytes(*encoded.size)
            self._memory.take(turn, held)
            taken = True
            loaded.held = held
            if self._needs_pixels:
                loaded.image = encoded.decode()
            if self._model.remote and self._options.upright:
                loaded.data = data
            loaded.geo_tags = encoded.geo_tags
        except ImageError as error:
            if not taken:
                self._memory.take(turn, 0)
            image = shown(Path(item.image))
            named = error if image in str(error) else type(error)(f"{image}: {error}")
            if isinstance(named, ImageTooLargeError) and not self._model.remote and self._options.tile != "none":
                loaded.too_large = named
            else:
                loaded.error = named
        except BaseException:
            if taken:
                self._memory.give_back(held)
            else:
                self._memory.take(turn, 0)
            raise
        loaded.decode_ms = (time.perf_counter() - began) * 1000
        return loaded

    def kind(self, loaded: Loaded) -> object:
        """Return a key that is equal for images that may share a run."""
        return id(loaded) if loaded.image is None else self._model.kind(loaded.image)

    def segment(self, batch: Sequence[Loaded]) -> list[Outcome]:
        """Segment images of one kind."""
        if batch[0].error is not None:
            return [batch[0].error]
        try:
            return self._model.segment(batch)
        except BaseException:  # `write` will not be called for these images, and others wait for their memory
            for loaded in batch:
                self._memory.give_back(loaded.held)
            raise

    def write(self, numbered: tuple[int, PlannedImage], loaded: Loaded, outcome: Outcome) -> SegmentedImage:
        """Write the files that are wanted of an answer, and return the image's outcome."""
        _, item = numbered
        try:
            if isinstance(outcome, WrittenAnswer):
                return self._tell_written(item, loaded, outcome)
            if not isinstance(outcome, Exception):
                return self._write(item, loaded, outcome)
            if not isinstance(outcome, ImageError):
                _logger.debug("segmenting %s failed", item.image, exc_info=outcome)
            error = outcome
        except (ImageError, MaskError) as caught:
            error = caught
        except OSError as caught:
            if caught.errno != errno.ENAMETOOLONG:
                raise
            image = shown(Path(item.image))
            error = ImageError(
                f"{image}: the name of its mask's file, or of a picture's, would be too long; rename the image"
            )
        finally:
            self._memory.give_back(loaded.held)
        return SegmentedImage(Path(item.image), Row(item.name, error=one_line(error)), error=error)

    def _write(self, item: PlannedImage, loaded: Loaded, answer: Answer) -> SegmentedImage:
        began = time.perf_counter()
        label_map, pictures = self._model.label_map, self._pictures
        class_map, mask = answer.class_map, self._plan.output / item.mask
        top = answer.strongest(pictures.top) if pictures.top else ()
        regions = answer.regions(pictures.regions) if pictures.regions else ()
        written = []
        if (image := loaded.image) is not None:
            written += _draw(Path(item.image), mask, image, answer, label_map, pictures, top, regions)
        if pictures.regions:
            written.append(regions_path(mask))
            write_regions(written[-1], regions, class_map.shape)
        if answer.confidence is not None:
            written.append(confidence_path(mask))
            write_bytes(written[-1], masks.encode(answer.confidence, Encoding.PNG, None))
        # Last, so that the mask exists only if the image is done.
        data = answer.png if self._plan.mask_format is MaskFormat.PNG else None
        if data is None:
            data = mask_files.encode(class_map, self._plan.mask_format, label_map, item.name, loaded.geo_tags)
        write_bytes(mask, data)
        spent = {"encode": (time.perf_counter() - began) * 1000}
        row = Row(
            image=item.name,
            size_bytes=loaded.size_bytes,
            modified_ns=loaded.modified_ns,
            mask=item.mask,
            files=tuple(path.relative_to(self._plan.output).as_posix() for path in written),
            height=class_map.shape[0],
            width=class_map.shape[1],
            classes=write_areas(answer.classes),
            top=write_peaks(top),
            timings_ms={name: round(ms, 3) for name, ms in {**spent, **answer.timings_ms}.items()},
        )
        return SegmentedImage(
            Path(item.image), row, mask, tuple(written), answer.classes, top, regions, notice=answer.notice
        )

    def _tell_written(self, item: PlannedImage, loaded: Loaded, answer: WrittenAnswer) -> SegmentedImage:
        """Return the outcome of an image whose mask was written while it was computed."""
        row = Row(
            image=item.name,
            size_bytes=loaded.size_bytes,
            modified_ns=loaded.modified_ns,
            mask=item.mask,
            height=answer.size[0],
            width=answer.size[1],
            classes=write_areas(answer.classes),
            timings_ms={name: round(ms, 3) for name, ms in answer.timings_ms.items()},
        )
        mask = self._plan.output / item.mask
        return SegmentedImage(Path(item.image), row, mask, classes=answer.classes, notice=answer.notice)


def _draw(
    source: Path,
    mask: Path,
    image: NDArray[np.uint8],
    answer: Answer,
    label_map: LabelMap,
    pictures: Pictures,
    top: Sequence[ClassPeak],
    regions: Sequence[Region],
) -> list[Path]:
    """Write the overlay and heatmaps that are wanted, and return their paths."""
    shown = dict.fromkeys((*pictures.heatmaps, *(peak.info for peak in top)))
    if pictures.overlay or shown:
        require_drawable(image, source)
    written = []
    if pictures.overlay:
        written.append(overlay_path(mask))
        write_jpeg(written[-1], render.boxes(render.overlay(image, answer.class_map, label_map), regions))
    for info in shown:
        written.append(heatmap_path(mask, info))
        write_jpeg(written[-1], render.heatmap(image, answer.scores(info), answer.grid))
    return written

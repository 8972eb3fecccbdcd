"""The job itself: every image of an input to a mask in a mirrored tree."""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnseg import images, masks, render
from fcnseg.errors import ImageError, ImageTooLargeError, MaskError, UsageError, one_line
from fcnseg.files import remove_halves, shown, write_bytes
from fcnseg.folder import coco, mask_files
from fcnseg.folder.answers import Answer, WrittenAnswer
from fcnseg.folder.earlier import remove_outlived
from fcnseg.folder.job import JobFile, claim
from fcnseg.folder.local_model import LocalModel, open_model
from fcnseg.folder.manifest import Manifest, Row, write_areas, write_peaks
from fcnseg.folder.mask_files import MaskFormat
from fcnseg.folder.memory import OrderedMemory
from fcnseg.folder.models import JobModel, Loaded, Outcome
from fcnseg.folder.names import JOB, MANIFEST, PARQUET, REPORT
from fcnseg.folder.options import DEFAULT_OPTIONS, FolderOptions
from fcnseg.folder.pipeline import Pipeline, Widths
from fcnseg.folder.plan import Plan, PlannedImage, plan, require_room
from fcnseg.masks import Encoding
from fcnseg.only_one import only_one
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
from fcnseg.segmenter import Segmenter
from fcnseg.types import ClassArea, ClassPeak, LabelMap

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentedImage:
    """What became of one image.

    Attributes:
        image: The image file.
        row: Its line in the manifest.
        mask: The mask file; None when the image failed.
        pictures: What was written beside the mask.
        classes: Classes present with their areas; empty when the image failed.
        top: The classes that got a heatmap for their probability, the most probable first.
        regions: Those that were asked for, by descending score.
        error: Why the image failed; None when it did not.
        skipped: Whether an earlier run had done it; `regions` are then left to their file.
        notice: What to know of the mask, in one line: that a net which looks at whole images saw tiles.
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


def segment_folder(
    model: str | Path | Segmenter | JobModel,
    source: str | Path,
    output: str | Path,
    options: FolderOptions = DEFAULT_OPTIONS,
) -> Iterator[SegmentedImage]:
    """Segment images, however many, while threads decode those ahead and write those behind.

    A job that was ended, by whatever, goes on where it was when it is started again: an image is done when the
    manifest says so, what it wrote is there, and its file has the size and time that it had. An image that cannot be
    read or segmented is reported in its turn, and the others go on; it is tried again next time. Files are written
    whole or not at all, and the bytes of a mask are those of `mask_files.encode`.

    >>> for done in fcnseg.segment_folder("model.onnx", "photos", "masks"):    # doctest: +SKIP
    ...     print(done.image, done.error or [area.info.name for area in done.classes])

    Args:
        model: A model file, a segmenter, or a model of a server (`ServerModel`).
        source: An image file; a folder, at any depth; a pattern such as `photos/**/*.jpg`; or a text file with a path
            in each line.
        output: The folder for the masks; for a single image a file name will do too.
        options: How.

    Yields:
        What became of each image, in the order of the images. Closing the generator, or an error or interrupt in it,
        finishes what is under way, so that nothing of it is lost.

    Raises:
        UsageError: There is nothing to do, or a file would take another's place, or what the output holds is not this
            job's.
        OSError: A file cannot be written, as when the disk is full: that would befall every further image too.
        RequestError: The server went away.
    """
    found = plan(source, Path(output), options.mask_format)
    if isinstance(model, (str, Path)):
        segmenter, at_a_time = open_model(Path(model), single=found.single)
        model = LocalModel(segmenter, options, at_a_time=at_a_time)
    elif isinstance(model, Segmenter):
        model = LocalModel(model, options)
    return Job(model, found, options).run()


class Job:
    """A job that is ready to run: images are found, the model is open, and nothing has been written.

    Attributes:
        model: The model.
        plan: What is to do.
        options: How.

    Raises:
        UsageError: A class is not one of the model's, or a picture would take a file's place.
    """

    def __init__(self, model: JobModel, plan: Plan, options: FolderOptions) -> None:
        self.model, self.plan, self.options = model, plan, replace(options, limits=model.limits)
        self._pictures = options.pictures(self.model.label_map)
        require_room(self.plan, self._pictures, self.model.label_map)

    @property
    def output(self) -> Path:
        """The folder for what is written."""
        return self.plan.output

    def run(self) -> Generator[SegmentedImage, None, None]:
        """Do the job, once."""
        if self.plan.single:
            mask = self.output / self.plan.images[0].mask
            if (self.output / JOB).exists() and mask.exists():
                raise UsageError(
                    f"the mask {mask} belongs to a folder's job, which {JOB} beside it tells of; name another place"
                )
            yield from self._segment(iter(self.plan.images), lambda _: None)
            return
        with ExitStack() as stack:
            stack.enter_context(only_one(self.output, "segmenting"))
            goes_on = self._claim()
            for folder in {self.output, *((self.output / item.mask).parent for item in self.plan.images)}:
                remove_halves(folder)
            manifest = stack.enter_context(Manifest(self.output / MANIFEST, fresh=not goes_on))
            yield from self._record(manifest)
            manifest.put_in_order(item.name for item in self.plan.images)
            remove_outlived(self.output, manifest)
            self._sum_up()

    def _claim(self) -> bool:
        options, label_map = self.options, self.model.label_map
        if not options.overwrite and not (self.output / JOB).exists():
            found = next((item.mask for item in self.plan.images if (self.output / item.mask).exists()), None)
            if found is not None:
                raise UsageError(
                    f"{self.output / found} is there, and no {JOB} says by which model it was made; name another"
                    " folder, or make everything anew with --overwrite"
                )
        return claim(
            self.output,
            JobFile(self.model.identity, options.named(label_map, self.model.tile), label_map),
            overwrite=options.overwrite,
        )

    def _record(self, manifest: Manifest) -> Iterator[SegmentedImage]:
        """Yield what became of every image, and write down what this run does."""
        order = iter(self.plan.images)
        undone = (item for item in self.plan.images if not self._is_done(item, manifest))
        with closing(self._segment(undone, manifest.append)) as results:
            for result in results:
                yield from self._done_before(result.image, order, manifest)
                yield result
        yield from self._done_before(None, order, manifest)

    def _done_before(
        self, image: Path | None, order: Iterator[PlannedImage], manifest: Manifest
    ) -> Iterator[SegmentedImage]:
        """Yield the images up to one, or to the end, all of which an earlier run did."""
        for item in order:
            if image is not None and Path(item.image) == image:
                return
            if (row := manifest.row(item.name)) is not None:
                yield self._skipped(item, row)

    def _is_done(self, item: PlannedImage, manifest: Manifest) -> bool:
        """Tell whether an earlier run did an image: it is the same file still, and what was written is there."""
        row = manifest.row(item.name)
        if row is None or row.error is not None or row.mask != item.mask:
            return False
        try:
            now = os.stat(item.image)  # noqa: PTH116 - a path in text
        except OSError:
            return False
        if (row.size_bytes, row.modified_ns) != (now.st_size, now.st_mtime_ns):
            return False
        return all((self.output / name).exists() for name in (row.mask, *row.files))

    def _skipped(self, item: PlannedImage, row: Row) -> SegmentedImage:
        """Return an image that an earlier run did, as its row tells of it."""
        known = self.model.label_map.classes
        return SegmentedImage(
            Path(item.image),
            row,
            self.output / item.mask,
            tuple(self.output / name for name in row.files),
            tuple(ClassArea(known[c["id"]], c["pixels"], c["fraction"]) for c in row.classes),
            tuple(ClassPeak(known[c["id"]], c["probability"]) for c in row.top),
            skipped=True,
        )

    def _segment(
        self, items: Iterator[PlannedImage], record: Callable[[Row], None]
    ) -> Generator[SegmentedImage, None, None]:
        """Yield what becomes of images; whatever ends it, what is under way is finished and recorded."""
        options, model = self.options, self.model
        worker = _Worker(self.plan, options, self._pictures, model)
        pipeline = Pipeline(
            worker.decode,
            worker.kind,
            worker.segment,
            worker.write,
            Widths(options.threads, model.at_a_time, options.threads, model.batch),
        )
        with ExitStack() as stack:
            stack.callback(pipeline.close)
            stack.callback(worker.close)
            try:
                for result in pipeline.results(enumerate(items)):
                    record(result.row)
                    yield result
            except BaseException:
                worker.end()
                raise
            finally:
                for result in pipeline.finish():
                    record(result.row)

    def _sum_up(self) -> None:
        """Write what is made of the whole manifest."""
        output, label_map = self.output, self.model.label_map
        if find_spec("pyarrow") is not None:
            from fcnseg.folder.parquet import write_parquet  # noqa: PLC0415 - an extra

            write_parquet(output / MANIFEST, output / PARQUET)
        if self.plan.mask_format is MaskFormat.COCO:
            coco.merge(output, label_map)
        if self.options.report:
            from fcnseg.folder.report import write_report  # noqa: PLC0415 - its templates are slow to import

            write_report(output / REPORT, self.plan, self.options, label_map, self.model.name, self.model.at)


class _Worker:
    """The stages of a job, for one image or a batch."""

    def __init__(self, plan: Plan, options: FolderOptions, pictures: Pictures, model: JobModel) -> None:
        self._plan, self._options, self._pictures, self._model = plan, options, pictures, model
        self._memory = OrderedMemory(options.memory_bytes)
        self._ended = threading.Event()
        # A server decodes by itself; pixels are wanted here to be drawn on, or where it would turn them.
        self._needs_pixels = (
            not model.remote or pictures.overlay or bool(pictures.heatmaps) or bool(pictures.top) or not options.upright
        )

    def end(self) -> None:
        """Finish soon: what takes long is left for the next time."""
        self._ended.set()

    def close(self) -> None:
        """Let nothing wait for memory any more."""
        self._memory.close()

    def decode(self, numbered: tuple[int, PlannedImage]) -> Loaded:
        """Read an image when there is memory for it."""
        turn, item = numbered
        began = time.perf_counter()
        loaded = Loaded(Path(item.image), self._plan.output / item.mask, ended=self._ended)
        held, taken = 0, False
        try:
            with suppress(OSError):  # reading it tells why
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
        """Return what is equal for images that run together."""
        return id(loaded) if loaded.image is None else self._model.kind(loaded.image)

    def segment(self, batch: Sequence[Loaded]) -> list[Outcome]:
        """Answer images of one kind."""
        if batch[0].error is not None:
            return [batch[0].error]
        try:
            return self._model.segment(batch)
        except BaseException:  # nothing will be written of them, and others wait for their memory
            for loaded in batch:
                self._memory.give_back(loaded.held)
            raise

    def write(self, numbered: tuple[int, PlannedImage], loaded: Loaded, outcome: Outcome) -> SegmentedImage:
        """Write what is wanted of an answer, and tell what became of the image."""
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
                f"{image}: its mask's name, or a picture's, is too long to be a file's; shorten the image's"
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
        # Last, so that a mask that is there says that the image is done.
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
        """Tell of an image whose mask was written as it was computed."""
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
    """Write overlay and heatmaps, as far as they are wanted, and return where they are."""
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

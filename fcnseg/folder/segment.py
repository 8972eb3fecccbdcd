"""Run a job: write a mask for every image of an input, in a mirrored folder tree."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from fcnseg.errors import UsageError
from fcnseg.files import remove_halves
from fcnseg.folder import coco
from fcnseg.folder.earlier import remove_outlived
from fcnseg.folder.job import JobFile, claim
from fcnseg.folder.local_model import LocalModel, open_model
from fcnseg.folder.manifest import Manifest, Row
from fcnseg.folder.mask_files import MaskFormat
from fcnseg.folder.models import JobModel
from fcnseg.folder.names import JOB, MANIFEST, PARQUET, REPORT
from fcnseg.folder.options import DEFAULT_OPTIONS, FolderOptions
from fcnseg.folder.pipeline import Pipeline, Widths
from fcnseg.folder.plan import Plan, PlannedImage, plan, require_room
from fcnseg.folder.worker import SegmentedImage, Worker
from fcnseg.only_one import only_one
from fcnseg.segmenter import Segmenter
from fcnseg.types import ClassArea, ClassPeak


def segment_folder(
    model: str | Path | Segmenter | JobModel,
    source: str | Path,
    output: str | Path,
    options: FolderOptions = DEFAULT_OPTIONS,
) -> Iterator[SegmentedImage]:
    """Segment any number of images, while other threads decode the next images and write the masks of earlier ones.

    A job that was interrupted continues when it is started again. An image counts as done if the manifest says so, the
    files written for it exist, and its own file has the same size and modification time as then. An image that cannot
    be read or segmented is reported in its turn and does not stop the others; it is tried again next time. Files are
    written whole or not at all, and the bytes of a mask are those of `mask_files.encode`.

    >>> for done in fcnseg.segment_folder("model.onnx", "photos", "masks"):    # doctest: +SKIP
    ...     print(done.image, done.error or [area.info.name for area in done.classes])

    Args:
        model: A model file, a segmenter, or a model of a server (`ServerModel`).
        source: An image file; a folder, at any depth; a pattern such as `photos/**/*.jpg`; or a text file with a path
            in each line.
        output: The folder for the masks; for a single image it may be a file name.
        options: The job's options.

    Yields:
        The outcome for each image, in the order of the images. When the generator is closed, or at an error or an
        interrupt, the images in progress are finished first, so that no work is lost.

    Raises:
        UsageError: There are no images, an output file would replace another file, or the output folder holds another
            job's files.
        OSError: A file cannot be written, for example because the disk is full; every further image would fail too.
        RequestError: The server no longer answers.
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
        plan: The images and the output.
        options: The job's options.

    Raises:
        UsageError: A class is not one of the model's, or a picture would overwrite another file.
    """

    def __init__(self, model: JobModel, plan: Plan, options: FolderOptions) -> None:
        self.model, self.plan, self.options = model, plan, replace(options, limits=model.limits)
        self._pictures = options.pictures(self.model.label_map)
        require_room(self.plan, self._pictures, self.model.label_map)

    @property
    def output(self) -> Path:
        """The folder for all files that are written."""
        return self.plan.output

    def run(self) -> Generator[SegmentedImage, None, None]:
        """Run the job; may be called only once."""
        if self.plan.single:
            mask = self.output / self.plan.images[0].mask
            if (self.output / JOB).exists() and mask.exists():
                raise UsageError(
                    f"the mask {mask} was made with others of its folder, as {JOB} beside it says; name another place"
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
                    f"{self.output / found} exists, and no {JOB} says by which model it was made; name another"
                    " folder, or segment all images again with --overwrite"
                )
        return claim(
            self.output,
            JobFile(self.model.identity, options.named(label_map, self.model.tile), label_map),
            overwrite=options.overwrite,
        )

    def _record(self, manifest: Manifest) -> Iterator[SegmentedImage]:
        """Yield the outcome of every image, and record in the manifest what this run does."""
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
        """Yield the images before a given one, or all remaining ones, which an earlier run has done."""
        for item in order:
            if image is not None and Path(item.image) == image:
                return
            if (row := manifest.row(item.name)) is not None:
                yield self._skipped(item, row)

    def _is_done(self, item: PlannedImage, manifest: Manifest) -> bool:
        """Tell whether an earlier run has done an image: its file is unchanged, and the files written for it exist."""
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
        """Return the outcome of an image that an earlier run has done, from its row."""
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
        """Yield the outcomes of images; however this ends, the images in progress are finished and recorded."""
        options, model = self.options, self.model
        worker = Worker(self.plan, options, self._pictures, model)
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
        """Write the files that summarise the whole manifest."""
        output, label_map = self.output, self.model.label_map
        if find_spec("pyarrow") is not None:
            from fcnseg.folder.parquet import write_parquet  # noqa: PLC0415 - an extra

            write_parquet(output / MANIFEST, output / PARQUET)
        if self.plan.mask_format is MaskFormat.COCO:
            coco.merge(output, label_map)
        if self.options.report:
            from fcnseg.folder.report import write_report  # noqa: PLC0415 - its templates are slow to import

            write_report(output / REPORT, self.plan, self.options, label_map, self.model.name, self.model.at)

"""Segmenting files and folders: every image of a tree to a mask PNG in a mirrored tree.

Names. `INPUT/a/photo.jpg` gives `OUTPUT/a/photo.png`. Where that name would be given twice (photo.jpg and photo.tif),
all inputs concerned keep their full name: photo.jpg.png and photo.tif.png. Pictures stand beside the mask as .jpg
files (see `pictures`), and so never take a mask's name. Hidden files are not read, nor is the output folder where it
lies inside the input.
"""

import errno
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnseg import images, masks, render
from fcnseg.errors import ImageError, UsageError
from fcnseg.files import write_bytes
from fcnseg.images import DEFAULT_LIMITS, ImageLimits
from fcnseg.masks import Encoding
from fcnseg.model_file import ModelInfo
from fcnseg.pictures import (
    NO_PICTURES,
    Pictures,
    heatmap_path,
    overlay_path,
    regions_path,
    require_drawable,
    write_jpeg,
    write_regions,
)
from fcnseg.regions import Region, find_regions
from fcnseg.segmenter import Segmenter
from fcnseg.types import ClassArea, ClassPeak, Segmentation

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedImage:
    """One image to segment.

    Attributes:
        image: The image file.
        mask: Where its mask goes.
    """

    image: Path
    mask: Path


@dataclass(frozen=True)
class SegmentedImage:
    """What became of one image.

    Attributes:
        image: The image file.
        mask: The mask file; None when the image failed.
        pictures: What was written beside the mask.
        classes: Classes present with their areas; empty when the image failed.
        top: The classes that got a heatmap for their probability, the most probable first.
        regions: Those that were asked for, by descending score.
        error: Why the image failed; None when it did not.
    """

    image: Path
    mask: Path | None = None
    pictures: tuple[Path, ...] = ()
    classes: tuple[ClassArea, ...] = ()
    top: tuple[ClassPeak, ...] = ()
    regions: tuple[Region, ...] = ()
    error: Exception | None = None


def plan(source: Path, output: Path) -> tuple[PlannedImage, ...]:
    """Find the images of a file or folder, and name their masks.

    Args:
        source: An image file, or a folder that is searched recursively for the suffixes `images.SUFFIXES`.
        output: The folder for the masks; for a single image a file name ending in .png will do too.

    Returns:
        At least one image, in the order of the paths.

    Raises:
        UsageError: There is no image, or a mask would take the place of an image.
    """
    if source.is_file():
        named = output.suffix.lower() == ".png" and not output.is_dir()
        mask = output if named else output / _name_masks([Path(source.name)])[0]
        planned: tuple[PlannedImage, ...] = (PlannedImage(source, mask),)
    elif source.is_dir():
        found = _find_images(source, output)
        names = _name_masks([image.relative_to(source) for image in found])
        planned = tuple(PlannedImage(image, output / name) for image, name in zip(found, names, strict=True))
    else:
        what = "is neither a file nor a folder" if source.exists() else "does not exist"
        raise UsageError(f"input {source} {what}; name an image file or a folder of images")
    if not planned:
        raise UsageError(
            f"no images in {source}; looked, at any depth, for files ending in {', '.join(images.SUFFIXES)}"
        )
    if output.is_file() and planned[0].mask != output:
        raise UsageError(f"output {output} is a file; name a folder for the masks")
    inputs = {item.image.resolve() for item in planned}
    for item in planned:
        if item.mask.resolve() in inputs:
            raise UsageError(f"the mask {item.mask} would take the place of an input image; name another output folder")
    return planned


def segment_folder(
    segmenter: Segmenter,
    planned: Sequence[PlannedImage],
    *,
    pictures: Pictures = NO_PICTURES,
    limits: ImageLimits = DEFAULT_LIMITS,
    workers: int = 2,
) -> Iterator[SegmentedImage]:
    """Segment images one after the other, while threads decode those ahead and write those behind.

    At most `2 * workers` decoded images wait on either side of the engine, so memory does not grow with the folder. An
    image that cannot be read or segmented is reported in its turn, and the others go on. Masks and pictures are written
    whole or not at all; the bytes of a mask are those of `masks.encode`.

    Args:
        segmenter: The model.
        planned: What to segment, from `plan`.
        pictures: What to write beside the masks.
        limits: Images beyond them fail.
        workers: Threads that decode, and as many that write.

    Yields:
        What became of each image, in the order given.

    Raises:
        UsageError: A picture would take the place of an image.
        OSError: A file cannot be written, as when the disk is full: that would befall every further image too.
    """
    _require_room(planned, pictures, segmenter.info)
    ahead = 2 * workers
    waiting = iter(planned)
    decoding: deque[tuple[PlannedImage, Future[NDArray[np.uint8]]]] = deque()
    writing: deque[Future[SegmentedImage]] = deque()
    decoders = ThreadPoolExecutor(workers, "fcnseg-decode")
    writers = ThreadPoolExecutor(workers, "fcnseg-write")
    try:
        while True:
            while len(decoding) < ahead and (item := next(waiting, None)) is not None:
                decoding.append((item, decoders.submit(images.read, item.image, limits)))
            if not decoding:
                break
            item, decoded = decoding.popleft()
            result = _segment_one(segmenter, item, decoded)
            if isinstance(result, SegmentedImage):
                finished: Future[SegmentedImage] = Future()
                finished.set_result(result)
                writing.append(finished)
            else:
                image, segmentation = result
                writing.append(writers.submit(_write_or_report, item, image, segmentation, pictures, segmenter.info))
            if len(writing) > ahead:
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()
    finally:
        decoders.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)


def _find_images(source: Path, output: Path) -> list[Path]:
    excluded = output.resolve()
    if excluded == source.resolve():
        raise UsageError(
            f"output {output} is the input folder, where masks would be taken for images next time; name another"
        )
    found = []
    for folder, subfolders, files in os.walk(source):
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and Path(folder, name).resolve() != excluded
        ]
        found += [
            Path(folder, name)
            for name in files
            if not name.startswith(".")
            and Path(name).suffix.lower() in images.SUFFIXES
            and Path(folder, name).is_file()  # a pipe of that name would be waited for
        ]
    return sorted(found)


def _require_room(planned: Sequence[PlannedImage], pictures: Pictures, info: ModelInfo) -> None:
    inputs = {item.image.resolve() for item in planned}
    folders = {image.parent for image in inputs}
    for item in planned:
        if item.mask.parent.resolve() not in folders:
            continue
        for path in pictures.paths(item.mask, info.label_map):
            if path.resolve() in inputs:
                raise UsageError(f"the picture {path} would take the place of an input image; name another output")


def _name_masks(paths: Sequence[Path]) -> list[Path]:
    names = {path: path.with_suffix(".png") for path in paths}
    full: set[Path] = set()
    while True:
        owners: dict[str, list[Path]] = {}
        for path, name in names.items():
            # Names that differ in case alone are one file on some systems.
            owners.setdefault(str(name).casefold(), []).append(path)
        clashing = {path for rivals in owners.values() if len(rivals) > 1 for path in rivals} - full
        if not clashing:
            return list(names.values())
        full |= clashing
        # A full name may clash in turn, with the mask of an image called photo.jpg.png, say: hence the loop.
        names |= {path: path.with_name(path.name + ".png") for path in clashing}


def _segment_one(
    segmenter: Segmenter, item: PlannedImage, decoded: Future[NDArray[np.uint8]]
) -> tuple[NDArray[np.uint8], Segmentation] | SegmentedImage:
    try:
        image = decoded.result()
        return image, segmenter.segment(image)
    except ImageError as error:
        return SegmentedImage(item.image, error=error)
    except Exception as error:  # onnxruntime's have no base: out of memory for one image, for example
        _logger.debug("segmenting %s failed", item.image, exc_info=error)
        return SegmentedImage(item.image, error=error)


def _write_or_report(
    item: PlannedImage, image: NDArray[np.uint8], segmentation: Segmentation, pictures: Pictures, info: ModelInfo
) -> SegmentedImage:
    try:
        return _write(item, image, segmentation, pictures, info)
    except ImageError as error:
        return SegmentedImage(item.image, error=error)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return SegmentedImage(item.image, error=ImageError(f"{item.image}: a file name made of its name is too long"))


def _write(
    item: PlannedImage, image: NDArray[np.uint8], segmentation: Segmentation, pictures: Pictures, info: ModelInfo
) -> SegmentedImage:
    class_map, label_map, geometry = segmentation.class_map, segmentation.label_map, info.geometry
    top = segmentation.strongest(pictures.top) if pictures.top else ()
    shown = dict.fromkeys((*pictures.heatmaps, *(peak.info for peak in top)))
    regions = find_regions(segmentation, geometry, pictures.regions) if pictures.regions else ()
    if pictures.overlay or shown:
        require_drawable(image, item.image)
    written = []
    if pictures.overlay:
        written.append(overlay_path(item.mask))
        write_jpeg(written[-1], render.boxes(render.overlay(image, class_map, label_map), regions))
    for heat in shown:
        written.append(heatmap_path(item.mask, heat))
        write_jpeg(written[-1], render.heatmap(image, segmentation.heatmap[heat.id], geometry))
    if pictures.regions:
        written.append(regions_path(item.mask))
        write_regions(written[-1], regions, class_map.shape)
    # Last, so that a mask that is there says that the image is done.
    write_bytes(item.mask, masks.encode(class_map, Encoding.PNG, label_map))
    return SegmentedImage(item.image, item.mask, tuple(written), segmentation.classes, top, regions)

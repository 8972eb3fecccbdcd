"""Draw masks from COCO annotations: polygons and run-length encodings, rasterised as pycocotools does.

Smaller objects cover larger ones, and of equally large ones the later covers the earlier. A group of objects
(`iscrowd`) has the class of its members; CVAT also marks every mask drawn with the brush as such a group.
"""

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from fcnseg import rle
from fcnseg.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Polygons:
    """An object's outlines.

    Attributes:
        outlines: x, y, x, y ... of each part of the object, in pixels, at least three points each.
    """

    outlines: "tuple[array[float], ...]"  # quoted: before Python 3.12 array takes no parameter


@dataclass(frozen=True, slots=True)
class RunLengths:
    """An object's run-length encoding: runs of pixels alternately outside and inside it, in column-major order.

    Attributes:
        counts: Lengths of the runs, the first one outside; or COCO's text form of them.
        size: Height and width of the image.
    """

    counts: "array[int] | bytes"
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class CocoObject:
    """One annotated object.

    Attributes:
        id: The annotation's id, for messages.
        class_id: The id of its class.
        area: The part of the image that it covers.
    """

    id: int | str
    class_id: int
    area: Polygons | RunLengths


@dataclass(frozen=True, slots=True)
class CocoMask:
    """The mask of one image of an annotation file; pixels that no object covers are class 0.

    Attributes:
        path: The annotation file.
        image: The image's name in that file.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        objects: The image's objects, in the file's order.
    """

    path: Path
    image: str
    height: int
    width: int
    objects: tuple[CocoObject, ...]

    def __str__(self) -> str:
        return f"of {self.image} in {self.path}"

    @property
    def name(self) -> str:
        """The name of the annotation file."""
        return self.path.name

    def read(self) -> NDArray[np.uint8]:
        """Return the mask, (H, W) uint8 ids.

        Raises:
            DatasetError: An annotation does not describe pixels of this image.
        """
        columns = np.zeros(self.height * self.width, np.uint8)
        runs = [self._runs(found) for found in self.objects]
        areas = np.array([counts[1::2].sum() for counts in runs])
        for i in np.argsort(-areas, kind="stable"):
            inside = np.repeat(np.arange(len(runs[i])) % 2 == 1, runs[i])
            columns[inside] = self.objects[i].class_id
        return np.ascontiguousarray(columns.reshape(self.width, self.height).T)

    def content(self) -> bytes:
        """Return bytes that determine the mask, for a fingerprint."""
        drawn = [(found.class_id, _as_text(found.area)) for found in self.objects]
        return json.dumps([self.height, self.width, drawn]).encode()

    def _runs(self, found: CocoObject) -> NDArray[np.int64]:
        """Return the lengths of an object's runs, whose sum is the number of the image's pixels."""
        if isinstance(found.area, Polygons):
            self._require_near(found, found.area)
            parts = coco_mask.frPyObjects(
                [outline.tolist() for outline in found.area.outlines], self.height, self.width
            )
            return _read_counts(coco_mask.merge(parts)["counts"])
        counts = found.area.counts
        runs = _read_counts(counts) if isinstance(counts, bytes) else np.array(counts, np.int64)
        if found.area.size != (self.height, self.width):
            raise self._error(found, f"is run-length encoded for {found.area.size[1]}x{found.area.size[0]} pixels")
        pixels = self.height * self.width
        wrong = runs[(runs < 0) | (runs > pixels)]  # their sum may overflow
        if wrong.size:
            raise self._error(found, f"has run lengths, one of them of {wrong[0]} pixels")
        if runs.sum() != pixels:
            raise self._error(found, f"has run lengths that fill {int(runs.sum())} pixels")
        return runs

    def _require_near(self, found: CocoObject, polygons: Polygons) -> None:
        """Refuse points far outside the image: drawing them would take unbounded memory."""
        for outline in polygons.outlines:
            points = np.array(outline).reshape(-1, 2)
            beyond = ~((points >= -self._size) & (points <= 2 * self._size)).all(axis=1)  # true for NaN too
            if beyond.any():
                x, y = points[beyond.argmax()]
                raise self._error(found, f"has the point ({x:g}, {y:g})")

    @property
    def _size(self) -> NDArray[np.int64]:
        return np.array([self.width, self.height], np.int64)

    def _error(self, found: CocoObject, what: str) -> DatasetError:
        return DatasetError(
            f"{self.path}: annotation {found.id} of {self.image} {what}, but the image has {self.width}x{self.height};"
            " correct the annotation or take it out"
        )


def _as_text(area: Polygons | RunLengths) -> Sequence[object]:
    if isinstance(area, Polygons):
        return [outline.tolist() for outline in area.outlines]
    return [area.size, area.counts.decode("latin-1") if isinstance(area.counts, bytes) else area.counts.tolist()]


def _read_counts(text: bytes) -> NDArray[np.int64]:
    """Read COCO's text form of run lengths; invalid text gives runs that do not fill the image."""
    try:
        runs = rle.read_numbers(text)
    except ValueError:
        return np.zeros(0, np.int64)
    rle.add_differences(runs)
    return runs

"""The values that cross fcnseg's boundaries: classes, label maps and segmentations."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fcnseg.errors import UsageError
from fcnseg.words import closest

ClassMap: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""(H, W) class ids: uint8 up to 256 classes, uint16 beyond."""
_MOST_UINT8_CLASSES = 256
MOST_CLASSES = 65535
"""Most classes of a model: uint16 holds their ids and one more value, for pixels of classes not requested."""

_EXACT_IN_FLOAT32 = 2**24
_BAND_PIXELS = 1 << 20
_SHORTEST_RUN = 8
"""Average run length in pixels below which counting every pixel is as fast."""
_BAND_SCORES = 1 << 20  # a softmax over so many takes milliseconds

Rgb: TypeAlias = tuple[float, float, float]
"""A value for each of the channels red, green and blue."""
LUMA: Rgb = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601, as OpenCV and Pillow have them)."""
Channel = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Channel, Channel, Channel]
"""Red, green, blue, each 0 to 255."""


@dataclass(frozen=True)
class ClassInfo:
    """One class of a model.

    Attributes:
        id: The value that stands for the class in a class map, 0 to K - 1.
        name: The name shown to people.
        colour: The colour it is drawn in.
    """

    id: int
    name: str
    colour: Colour


@dataclass(frozen=True)
class LabelMap:
    """What the values of a class map mean.

    Attributes:
        classes: Classes in the order of their ids, which are 0 to K - 1; K is at least 1 and at most 65535.
        ignore_id: The value that marks pixels without a label in training masks; a model never predicts it.

    Raises:
        ValueError: The ids are not 0 to K - 1, or the ignore id is one of them.
    """

    classes: tuple[ClassInfo, ...]
    ignore_id: int | None = None

    def __post_init__(self) -> None:
        ids = [c.id for c in self.classes]
        if not ids or ids != list(range(len(ids))):
            raise ValueError(f"class ids must be 0 to K - 1 in order, and at least one; got {ids[:20]}")
        if len(ids) > MOST_CLASSES:
            raise ValueError(f"there are {len(ids)} classes, and class maps can tell {MOST_CLASSES} apart")
        if self.ignore_id is not None and 0 <= self.ignore_id < len(ids):
            raise ValueError(f"ignore id {self.ignore_id} is also the id of class {self.classes[self.ignore_id].name}")

    @classmethod
    def from_names(
        cls, names: Sequence[str], colours: Sequence[Colour] | None = None, ignore_id: int | None = None
    ) -> "LabelMap":
        """Build a label map from names in id order; colours default to the PASCAL VOC colour sequence."""
        colours = colours if colours is not None else [voc_colour(i) for i in range(len(names))]
        return cls(tuple(ClassInfo(i, n, c) for i, (n, c) in enumerate(zip(names, colours, strict=True))), ignore_id)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def id_dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """The type of a class map's ids: uint8 up to 256 classes, uint16 beyond."""
        return np.dtype(np.uint8) if len(self) <= _MOST_UINT8_CLASSES else np.dtype(np.uint16)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of names, colours and ignore id: equal hashes mean that ids mean the same."""
        content = [[c.id, c.name, *c.colour] for c in self.classes]
        canonical = json.dumps([content, self.ignore_id], separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def palette(self) -> NDArray[np.uint8]:
        """Colours as (max(K, 256), 3) uint8; ids without a class are black."""
        table = np.zeros((max(len(self), 256), 3), np.uint8)
        table[: len(self)] = [c.colour for c in self.classes]
        return table

    @cached_property
    def _by_name_or_id(self) -> dict[str, ClassInfo]:
        """Classes by case-folded name, and by decimal id unless that is a name; of equal names the first one wins."""
        found: dict[str, ClassInfo] = {}
        for info in self.classes:
            found.setdefault(info.name.casefold(), info)
        for info in self.classes:
            found.setdefault(str(info.id), info)
        return found

    def knows(self, name_or_id: str) -> bool:
        """Tell whether `find` finds a class."""
        return name_or_id.strip().casefold() in self._by_name_or_id

    def find(self, name_or_id: str) -> ClassInfo:
        """Return the class with this name (any case), or else with this decimal id.

        Raises:
            UsageError: No such class; the message names the closest.
        """
        info = self._by_name_or_id.get(name_or_id.strip().casefold())
        if info is not None:
            return info
        raise UsageError(f"no class {name_or_id!r} in the model; {closest(name_or_id, [c.name for c in self.classes])}")

    def word_for(self, info: ClassInfo) -> str:
        """Return the word with which `find` finds a class: its name, or its id if another class has the same name.

        Raises:
            UsageError: Both the name and the id lead `find` to other classes.
        """
        for word in (info.name, str(info.id)):
            if self._by_name_or_id.get(word.strip().casefold()) == info:
                return word
        raise UsageError(
            f"class {info.id} cannot be asked for: its name {info.name!r} and its id are names of other classes too;"
            " export the model with names that differ"
        )


def require_names(what: str, names: Sequence[object]) -> None:
    """Check an argument that lists class names.

    Args:
        what: The argument's name, for the message.
        names: Class names, or ids as strings.

    Raises:
        UsageError: `names` is a single string, can be read only once, or has an element that is not a string.
    """
    if isinstance(names, str):
        raise UsageError(f"{what} is the text {names!r}; give a list of names, such as [{names!r}]")
    if isinstance(names, Iterator):  # once read, it would be empty, which means all classes
        raise UsageError(f"{what} is a {type(names).__name__}, which can be read only once; give a list of names")
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"{what} has {name!r}; give a class by its name, or its id as text, such as '{name}'")


def voc_colour(index: int) -> Colour:
    """Colour `index` of the PASCAL VOC sequence: the index's bits spread over the channels, highest bits first."""
    channels = [0, 0, 0]
    for shift in range(8):
        for channel in range(3):
            channels[channel] |= ((index >> (3 * shift + channel)) & 1) << (7 - shift)
    return channels[0], channels[1], channels[2]


@dataclass(frozen=True)
class ClassArea:
    """How much of an image a class covers.

    Attributes:
        info: The class.
        pixels: Pixels of the class, at least 1.
        fraction: Its share of the image's pixels, in (0, 1].
    """

    info: ClassInfo
    pixels: int
    fraction: float

    @property
    def id(self) -> int:
        """The class's id."""
        return self.info.id

    @property
    def name(self) -> str:
        """The class's name."""
        return self.info.name


@dataclass(frozen=True)
class ClassPeak:
    """The highest probability that a class reaches in an image.

    Attributes:
        info: The class.
        probability: Its highest softmax probability at any heatmap cell, 0 to 1.
    """

    info: ClassInfo
    probability: float


def count_ids(class_map: ClassMap, count: int) -> NDArray[np.int64]:
    """Count the pixels of each id in an (H, W) class map whose ids are all in 0 to `count` - 1."""
    rows = max(1, _BAND_PIXELS // max(1, class_map.shape[1]))
    bands = (class_map[first : first + rows] for first in range(0, class_map.shape[0], rows))
    return sum((_count_band(band, count) for band in bands), np.zeros(count, np.int64))


def _count_band(band: ClassMap, count: int) -> NDArray[np.int64]:
    """Count by runs of equal ids, of which masks consist: takes half the time of counting every pixel."""
    ids = band.reshape(-1)
    changes = ids[1:] != ids[:-1]
    runs = np.count_nonzero(changes) + 1
    if runs * _SHORTEST_RUN <= ids.size:
        edges = np.empty(runs + 1, np.intp)  # the index of each run's last pixel, after a leading -1
        edges[0], edges[1:-1], edges[-1] = -1, changes.nonzero()[0], ids.size - 1
        return np.bincount(ids[edges[1:]], edges[1:] - edges[:-1], count).astype(np.int64)
    if band.dtype == np.uint8 and band.size <= _EXACT_IN_FLOAT32:
        # Four times as fast as bincount, which first converts the ids to 8-byte integers.
        return cv2.calcHist([band], [0], None, [256], [0, 256]).reshape(-1)[:count].astype(np.int64)
    return np.bincount(ids, minlength=count)


def class_areas(counts: NDArray[np.int64], label_map: LabelMap) -> tuple[ClassArea, ...]:
    """Return the areas of the classes that have pixels, in the order of their ids, from the counts of `count_ids`."""
    pixels = counts.sum()
    return tuple(
        ClassArea(label_map.classes[i], int(counts[i]), float(counts[i] / pixels)) for i in np.flatnonzero(counts)
    )


def answer_bytes(label_map: LabelMap, pixels: int, scores: int) -> int:
    """Estimate the most bytes that an image and its answer take until the answer is written.

    Args:
        label_map: What the ids mean.
        pixels: Number of pixels of the image.
        scores: Number of values of its heatmap, over all classes that are kept.
    """
    # RGB, confidence and an RGB picture; the ids, a subset of them and their encoding; scores and probabilities.
    return pixels * (7 + 3 * label_map.id_dtype.itemsize) + scores * 8


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A model's answer for one image, at the image's own size.

    Attributes:
        class_map: (H, W) class ids, uint8 up to 256 classes, uint16 beyond.
        heatmap: (K, h, w) float32 scores at the net's own stride, before any softmax.
        confidence: (H, W) uint8, the winning class's softmax probability times 255, rounded; None unless asked for.
        label_map: What the ids mean.
    """

    class_map: ClassMap
    heatmap: NDArray[np.float32]
    confidence: NDArray[np.uint8] | None
    label_map: LabelMap

    @cached_property
    def classes(self) -> tuple[ClassArea, ...]:
        """Classes present with their areas, in the order of their ids."""
        return class_areas(count_ids(self.class_map, len(self.label_map)), self.label_map)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(K, h, w) float32 softmax over the classes at each heatmap cell; 0 at a cell with a NaN score."""
        return self._softmax(lambda: None)

    def probabilities_while(self, check: Callable[[], object]) -> NDArray[np.float32]:
        """Return `probabilities`, calling `check` while they are computed; an error that it raises aborts that."""
        if "probabilities" not in self.__dict__:
            self.__dict__["probabilities"] = self._softmax(check)  # where `cached_property` stores its value
        return self.probabilities

    def _softmax(self, check: Callable[[], object]) -> NDArray[np.float32]:
        """Compute the softmax over the classes, a band of rows at a time."""
        classes, height, width = self.heatmap.shape
        found = np.empty(self.heatmap.shape, np.float32)
        rows = max(1, _BAND_SCORES // (classes * width))
        for first in range(0, height, rows):
            check()
            scores, powers = (array[:, first : first + rows] for array in (self.heatmap, found))
            with np.errstate(invalid="ignore"):
                np.exp(scores - scores.max(axis=0), out=powers)
            powers /= powers.sum(axis=0)
            unknown = np.isnan(powers[0])  # a NaN score makes the probabilities of all classes NaN
            if unknown.any():
                powers[:, unknown] = 0
        return found

    def strongest(self, count: int) -> tuple[ClassPeak, ...]:
        """Return the classes whose peak probability at any heatmap cell is highest, in descending order, ties by id."""
        peaks = self.probabilities.max(axis=(1, 2))
        order = np.argsort(-peaks, kind="stable")[:count]
        return tuple(ClassPeak(self.label_map.classes[i], float(peaks[i])) for i in order)


@dataclass(frozen=True)
class Placement:
    """The nodes of one operator that ran on one execution provider.

    Attributes:
        provider: The provider, such as `CUDAExecutionProvider`.
        operator: The operator, such as `Conv`.
        nodes: How many nodes, at least 1.
        image_sized: Whether the nodes process data whose size grows with the image's height and width; other nodes
            compute shapes and similar small values.
    """

    provider: str
    operator: str
    nodes: int
    image_sized: bool

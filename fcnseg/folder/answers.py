"""A model's answer for an image, whether the model ran in this process or on a server."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fcnseg.regions import Region, RegionQuery, find_regions
from fcnseg.remote import RemoteSegmentation
from fcnseg.resample import Grid
from fcnseg.types import ClassArea, ClassInfo, ClassMap, ClassPeak, LabelMap, Segmentation


class Answer(Protocol):
    """The results for one image; costly ones are computed on demand."""

    @property
    def class_map(self) -> ClassMap:
        """(H, W) class ids."""

    @property
    def classes(self) -> tuple[ClassArea, ...]:
        """Classes present with their areas, by id."""

    @property
    def confidence(self) -> NDArray[np.uint8] | None:
        """(H, W) uint8; None unless asked for."""

    @property
    def grid(self) -> Grid:
        """Where the cells of heatmaps lie, if heatmaps were asked for."""

    @property
    def png(self) -> bytes | None:
        """The class map as a PNG file's bytes, if it was received as PNG; else None."""

    @property
    def timings_ms(self) -> Mapping[str, float]:
        """The duration of each stage, in milliseconds."""

    @property
    def notice(self) -> str | None:
        """A remark for the user in one line; None if there is none."""

    def scores(self, info: ClassInfo) -> NDArray[np.float32]:
        """Return a class's scores at the cells, (h, w)."""

    def strongest(self, count: int) -> tuple[ClassPeak, ...]:
        """Return the classes with the highest probability at any cell."""

    def regions(self, query: RegionQuery) -> tuple[Region, ...]:
        """Return the regions asked for, by descending score."""


@dataclass(frozen=True, eq=False)
class LocalAnswer:
    """The answer of a model that ran in this process."""

    segmentation: Segmentation
    grid: Grid
    timings_ms: Mapping[str, float]
    notice: str | None = None
    png: None = None

    @property
    def class_map(self) -> ClassMap:
        """(H, W) class ids."""
        return self.segmentation.class_map

    @property
    def classes(self) -> tuple[ClassArea, ...]:
        """Classes present."""
        return self.segmentation.classes

    @property
    def confidence(self) -> NDArray[np.uint8] | None:
        """The confidence map."""
        return self.segmentation.confidence

    def scores(self, info: ClassInfo) -> NDArray[np.float32]:
        """Return a class's scores."""
        scores: NDArray[np.float32] = self.segmentation.heatmap[info.id]
        return scores

    def strongest(self, count: int) -> tuple[ClassPeak, ...]:
        """Return the most probable classes."""
        return self.segmentation.strongest(count)

    def regions(self, query: RegionQuery) -> tuple[Region, ...]:
        """Return regions."""
        return find_regions(self.segmentation, self.grid, query)


@dataclass(frozen=True, eq=False)
class RemoteAnswer:
    """The answer of a server; the request has already asked for everything that this class returns."""

    remote: RemoteSegmentation
    label_map: LabelMap
    timings_ms: Mapping[str, float]
    notice: None = None

    @property
    def class_map(self) -> ClassMap:
        """(H, W) class ids."""
        return self.remote.class_map

    @cached_property
    def classes(self) -> tuple[ClassArea, ...]:
        """Classes present."""
        return tuple(
            ClassArea(self.label_map.classes[area.id], area.pixels, area.fraction) for area in self.remote.classes
        )

    @property
    def confidence(self) -> NDArray[np.uint8] | None:
        """The confidence map."""
        return self.remote.confidence

    @property
    def grid(self) -> Grid:
        """Where cells lie."""
        if self.remote.grid is None:
            raise ValueError("no heatmaps were asked for")
        return self.remote.grid

    @property
    def png(self) -> bytes | None:
        """The mask as it was received."""
        return self.remote.data or None

    def scores(self, info: ClassInfo) -> NDArray[np.float32]:
        """Return a class's scores."""
        return next(heat.scores for heat in self.remote.heatmaps if heat.info.id == info.id)

    def strongest(self, count: int) -> tuple[ClassPeak, ...]:
        """Return the most probable classes, from the heatmaps of all classes."""
        peaks = [ClassPeak(heat.info, float(heat.probabilities.max())) for heat in self.remote.heatmaps]
        peaks.sort(key=lambda peak: (-peak.probability, peak.info.id))
        return tuple(peaks[:count])

    def regions(self, query: RegionQuery) -> tuple[Region, ...]:
        """Return the regions that were asked for."""
        del query
        return self.remote.regions


@dataclass(frozen=True)
class WrittenAnswer:
    """The answer for an image too large for memory, whose mask has been written window by window.

    Attributes:
        size: (height, width) of the mask.
        classes: The classes that the mask shows.
        timings_ms: The duration of each stage, in milliseconds.
        notice: A remark on the mask for the user, in one line.
    """

    size: tuple[int, int]
    classes: tuple[ClassArea, ...]
    timings_ms: Mapping[str, float]
    notice: str | None

"""Statistics over all images of a job."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from fcnseg.folder.manifest import Row

_FAILURES_KEPT = 1000
_BINS = 10


@dataclass
class Totals:
    """Counts over the rows of a manifest.

    Attributes:
        done: Number of images that have a mask.
        failed: Number of images that have none.
        failures: The first thousand of the failed images, with the reasons.
        pixels: Number of pixels by class id.
        images: Number of images that show a class, by its id.
        largest: Histogram of the share of each image's largest class: number of images per tenth, 0 to 10 % first.
        top: By class id, how often a class was among an image's most probable, and its highest probability.
    """

    done: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    largest: list[int] = field(default_factory=lambda: [0] * _BINS)
    top: dict[int, "Peaks"] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Self:
        """Count all rows."""
        totals = cls()
        for row in rows:
            totals.add(row)
        return totals

    def add(self, row: Row) -> None:
        """Count another row."""
        if row.error is not None:
            self.failed += 1
            if len(self.failures) < _FAILURES_KEPT:
                self.failures.append((row.image, row.error))
            return
        self.done += 1
        for area in row.classes:
            self.pixels[area["id"]] += area["pixels"]
            self.images[area["id"]] += 1
        largest = max((area["fraction"] for area in row.classes), default=0)
        self.largest[min(int(largest * _BINS), _BINS - 1)] += 1
        for peak in row.top:
            self.top.setdefault(peak["id"], Peaks()).add(peak["probability"])


@dataclass
class Peaks:
    """How often a class was among the most probable of an image, and its highest probability."""

    images: int = 0
    highest: float = 0.0

    def add(self, probability: float) -> None:
        """Count another image."""
        self.images += 1
        self.highest = max(self.highest, probability)

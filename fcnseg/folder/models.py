"""The model of a job: what it is given, and what it answers."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import ImageError, ImageTooLargeError
from fcnseg.folder.answers import Answer, WrittenAnswer
from fcnseg.geotiff import GeoTags
from fcnseg.images import ImageLimits
from fcnseg.types import LabelMap


class JobEndedError(BaseException):
    """The job ends before its time, and this image is left for the next: no failure of the image."""


@dataclass(eq=False)
class Loaded:
    """An image that has been read.

    Attributes:
        source: The file.
        mask: Where its mask goes.
        image: (H, W, 3) uint8 RGB pixels; None where nobody here needs them, or the image cannot be read whole.
        data: The file's bytes, where a server is to have them.
        too_large: Why it is not read whole, where it is to be read in windows.
        error: Why it cannot be read.
        geo_tags: Where on earth its pixels lie, of a GeoTIFF.
        size_bytes: The file's size.
        modified_ns: When the file was last written, as `os.stat` tells it.
        held: Bytes that it holds of the job's memory.
        decode_ms: What reading and decoding took.
        ended: Set where the job ends before its time: what takes long is given up then, by a `JobEndedError`.
    """

    source: Path
    mask: Path
    image: NDArray[np.uint8] | None = None
    data: bytes | None = None
    too_large: ImageTooLargeError | None = None
    error: ImageError | None = None
    geo_tags: GeoTags = field(default_factory=dict)
    size_bytes: int | None = None
    modified_ns: int | None = None
    held: int = 0
    decode_ms: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)

    def require_time(self) -> None:
        """Check that the job goes on.

        Raises:
            JobEndedError: It does not.
        """
        if self.ended.is_set():
            raise JobEndedError(f"the job ended before {self.source.name} was done")


Outcome: TypeAlias = Answer | WrittenAnswer | Exception
"""An answer, or why there is none for this image; what would befall every image is raised."""


class JobModel(Protocol):
    """What a job needs of its model."""

    @property
    def label_map(self) -> LabelMap:
        """What ids mean."""

    @property
    def name(self) -> str:
        """What to call it, for people."""

    @property
    def at(self) -> str:
        """Where it runs, for people."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from other models, as JSON has it."""

    @property
    def remote(self) -> bool:
        """Whether it takes files' bytes rather than pixels."""

    @property
    def at_a_time(self) -> int:
        """Calls of `segment` at a time."""

    @property
    def batch(self) -> int:
        """Most images that one call of `segment` takes."""

    @property
    def tile(self) -> str | int:
        """How images are cut into tiles, as far as masks depend on it."""

    @property
    def limits(self) -> ImageLimits:
        """What is refused before any pixel is decoded."""

    def kind(self, image: NDArray[np.uint8]) -> object:
        """Return a key: images of equal keys may be given to one call of `segment`."""

    def held_bytes(self, height: int, width: int) -> int:
        """Return what an image takes until it is written, in bytes."""

    def segment(self, loaded: Sequence[Loaded]) -> list[Outcome]:
        """Answer images of one kind, none of which failed to be read."""

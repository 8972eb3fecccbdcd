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
    """What a folder's job asks of its model, whether it runs here or on a server."""

    @property
    def label_map(self) -> LabelMap:
        """The model's classes."""

    @property
    def name(self) -> str:
        """The model's name, as people are told it."""

    @property
    def at(self) -> str:
        """The device or server that it runs on, as people are told it."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this model from others, as a JSON object."""

    @property
    def remote(self) -> bool:
        """Whether a server runs it, which takes the bytes of files rather than pixels."""

    @property
    def at_a_time(self) -> int:
        """How many calls of `segment` may run at a time."""

    @property
    def batch(self) -> int:
        """How many images one call of `segment` may take."""

    @property
    def tile(self) -> str | int:
        """How images are cut into tiles, as far as masks depend on it."""

    @property
    def limits(self) -> ImageLimits:
        """The limits beyond which an image is refused before its pixels are decoded."""

    def kind(self, image: NDArray[np.uint8]) -> object:
        """Return a key: images of equal keys may be given to one call of `segment`."""

    def held_bytes(self, height: int, width: int) -> int:
        """Return how many bytes of memory an image takes until its mask is written."""

    def segment(self, loaded: Sequence[Loaded]) -> list[Outcome]:
        """Answer images of one kind, none of which failed to be read."""

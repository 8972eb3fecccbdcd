"""The interface between a job and its model: inputs and outcomes."""

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
    """The job is being stopped, and leaves this image to the next run; the image has not failed."""


@dataclass(eq=False)
class Loaded:
    """An image that has been read.

    Attributes:
        source: The file.
        mask: The path of its mask.
        image: (H, W, 3) uint8 RGB pixels; None if this process does not need them, or the image is too large to decode.
        data: The file's bytes, if they are to be sent to a server.
        too_large: Why the image cannot be decoded as a whole, if it is to be read in windows.
        error: Why the image cannot be read.
        geo_tags: Where on earth the pixels of a GeoTIFF lie.
        size_bytes: The file's size.
        modified_ns: The file's modification time from `os.stat`, in nanoseconds.
        held: Bytes of the job's memory budget that the image holds.
        decode_ms: Duration of reading and decoding, in milliseconds.
        ended: Set when the job is being stopped: long computations then give up with a `JobEndedError`.
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
            JobEndedError: The job is being stopped.
        """
        if self.ended.is_set():
            raise JobEndedError(f"the job ended before {self.source.name} was done")


Outcome: TypeAlias = Answer | WrittenAnswer | Exception
"""An answer, or the error of this image alone; an error that would affect every image is raised instead."""


class JobModel(Protocol):
    """The interface of a job's model, whether it runs in this process or on a server."""

    @property
    def label_map(self) -> LabelMap:
        """The model's classes."""

    @property
    def name(self) -> str:
        """The model's name, for people."""

    @property
    def at(self) -> str:
        """The device or server that the model runs on, for people."""

    @property
    def identity(self) -> dict[str, Any]:
        """The values that identify the model, as a JSON object."""

    @property
    def remote(self) -> bool:
        """Whether the model runs on a server, which takes the bytes of files rather than pixels."""

    @property
    def at_a_time(self) -> int:
        """How many calls of `segment` may run at a time."""

    @property
    def batch(self) -> int:
        """How many images one call of `segment` may take."""

    @property
    def tile(self) -> str | int:
        """How images are split into tiles, as far as masks depend on it."""

    @property
    def limits(self) -> ImageLimits:
        """The limits beyond which an image is refused before its pixels are decoded."""

    def kind(self, image: NDArray[np.uint8]) -> object:
        """Return a key; images with equal keys may share one call of `segment`."""

    def held_bytes(self, height: int, width: int) -> int:
        """Return the bytes of memory that an image takes until its mask is written."""

    def segment(self, loaded: Sequence[Loaded]) -> list[Outcome]:
        """Segment images of one kind, all of which were read without error."""

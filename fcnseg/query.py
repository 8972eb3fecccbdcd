"""Queries: what a client asks a server for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import UsageError
from fcnseg.masks import Encoding
from fcnseg.regions import RegionQuery
from fcnseg.types import require_names

ImageSource: TypeAlias = str | Path | bytes | NDArray[np.uint8]
"""A path, an encoded image's bytes (JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF), or pixels as (H, W, 3) uint8 RGB."""

StreamSource: TypeAlias = ImageSource | tuple[str | int, ImageSource]
"""An image, or a pair of id and image; an image without an id gets its position in the stream as id."""


@dataclass(frozen=True)
class OverlayQuery:
    """How an overlay is drawn.

    Attributes:
        opacity: Weight of the class's colour in the blend with the image, 0 to 1.
        quality: JPEG quality, 1 to 100.

    Raises:
        UsageError: A number is out of range.
    """

    opacity: float = 0.5
    quality: int = 92

    def __post_init__(self) -> None:
        require_opacity(self.opacity)
        require_quality(self.quality)


def require_opacity(opacity: float) -> None:
    """Check an overlay's opacity.

    Raises:
        UsageError: The opacity is not from 0 to 1.
    """
    if not 0 <= opacity <= 1:
        raise UsageError(f"the overlay's opacity is {opacity:g}; it must be from 0 to 1")


def require_quality(quality: int) -> None:
    """Check an overlay's JPEG quality.

    Raises:
        UsageError: The quality is not from 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"the overlay's JPEG quality is {quality}; it must be from 1 to 100")


def require_model(model: object, version: object = "") -> None:
    """Check a model's name and version.

    Raises:
        UsageError: Name or version is not a string of valid Unicode, but a number, for example.
    """
    for name, value in (("model", model), ("version", version)):
        if not isinstance(value, str):
            raise UsageError(f"{name} is {value!r}; give it as text, such as '{value}'")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{name} is {value!r}, which is not Unicode text; no server has it") from error


@dataclass(frozen=True)
class SegmentQuery:
    """What to compute for an image; `Client.segment` documents the fields.

    Raises:
        UsageError: Classes are given as a single string, a generator or numbers, model or version is not a string,
            regions is not a `RegionQuery`, or the encoding does not exist.
    """

    model: str
    version: str
    encoding: Encoding
    heatmaps: Sequence[str]
    regions: RegionQuery | None
    confidence: bool
    overlay: bool | OverlayQuery
    classes: Sequence[str]

    def __post_init__(self) -> None:
        if self.encoding not in set(Encoding):
            raise UsageError(f"there is no encoding {self.encoding!r}; there are {', '.join(Encoding)}")
        require_model(self.model, self.version)
        require_names("heatmaps", self.heatmaps)
        require_names("classes", self.classes)
        if not isinstance(self.regions, RegionQuery | None):
            raise UsageError(f"regions is {self.regions!r}; give a RegionQuery, or None for none")

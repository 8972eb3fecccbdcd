"""What a client asks a server for."""

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
"""An image, or its id and the image; without an id, its position is its id."""


@dataclass(frozen=True)
class OverlayQuery:
    """How an overlay is drawn.

    Attributes:
        opacity: Share of the class's colour, 0 to 1.
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
        UsageError: It is not from 0 to 1.
    """
    if not 0 <= opacity <= 1:
        raise UsageError(f"the overlay's opacity is {opacity:g}; it must be from 0 to 1")


def require_quality(quality: int) -> None:
    """Check an overlay's JPEG quality.

    Raises:
        UsageError: It is not from 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"the overlay's JPEG quality is {quality}; it must be from 1 to 100")


def require_model(model: object, version: object = "") -> None:
    """Check what names a model.

    Raises:
        UsageError: Name or version is something else than Unicode text, such as a number.
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
    """What is wanted of an image; `Client.segment` documents the fields.

    Raises:
        UsageError: Classes are given as one text, a generator or numbers, model or version are no text, regions are no
            `RegionQuery`, or there is no such encoding.
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

"""The files beside a mask: pictures as JPEG, regions as JSON, confidence as PNG.

They are named after the mask: photo.overlay.jpg, photo.heatmap-8-cat.jpg, photo.regions.json and photo.confidence.png
beside photo.png.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import ImageError
from fcnseg.files import write_bytes, write_text
from fcnseg.regions import Region, RegionQuery
from fcnseg.types import ClassInfo, LabelMap

JPEG_QUALITY = 92
JPEG_LARGEST = 65500
"""Most pixels per side: libjpeg's limit, slightly below that of the format."""


@dataclass(frozen=True)
class Pictures:
    """Which files to write beside a mask.

    Attributes:
        overlay: Whether to write the image tinted with its classes' colours, with the boxes of regions if wanted.
        heatmaps: Classes whose scores are drawn over the greyed image, each in its own picture.
        top: Number of further heatmaps: of the classes with the highest probability at any cell of the image.
        regions: Which regions to list; None for no list.
        confidence: Whether to write the winning class's probability at every pixel, 0 to 255, as a greyscale PNG.
    """

    overlay: bool = False
    heatmaps: tuple[ClassInfo, ...] = ()
    top: int = 0
    regions: RegionQuery | None = None
    confidence: bool = False

    def paths(self, mask: Path, label_map: LabelMap) -> tuple[Path, ...]:
        """Return the paths of all files that may be written beside a mask."""
        heatmaps = label_map.classes if self.top else self.heatmaps
        return (
            *([overlay_path(mask)] if self.overlay else []),
            *(heatmap_path(mask, info) for info in heatmaps),
            *([regions_path(mask)] if self.regions else []),
            *([confidence_path(mask)] if self.confidence else []),
        )


def overlay_path(mask: Path) -> Path:
    """Return the path of a mask's overlay."""
    return mask.with_suffix(".overlay.jpg")


def heatmap_path(mask: Path, info: ClassInfo) -> Path:
    """Return the path of a class's heatmap."""
    name = re.sub(r"[^\w-]+", "_", info.name).strip("_")[:60]
    return mask.with_suffix(f".heatmap-{info.id}-{name}.jpg")


def regions_path(mask: Path) -> Path:
    """Return the path of the list of regions."""
    return mask.with_suffix(".regions.json")


def confidence_path(mask: Path) -> Path:
    """Return the path of the confidence map."""
    return mask.with_suffix(".confidence.png")


def require_drawable(image: NDArray[np.uint8], path: Path) -> None:
    """Check that pictures of an image can be written.

    Raises:
        ImageError: The image has more rows or columns than a JPEG file can have.
    """
    if max(image.shape) > JPEG_LARGEST:
        raise ImageError(
            f"{path}: its pictures would have {image.shape[1]} x {image.shape[0]} pixels, and a JPEG has at"
            f" most {JPEG_LARGEST} a side; leave out overlay and heatmaps"
        )


def write_jpeg(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an (H, W, 3) uint8 RGB picture as JPEG, atomically."""
    write_bytes(path, encode_jpeg(picture))


def encode_jpeg(picture: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """Return an (H, W, 3) uint8 RGB picture, at most `JPEG_LARGEST` pixels a side, as JPEG of a quality of 1 to 100."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def write_regions(path: Path, regions: Iterable[Region], size: tuple[int, int]) -> None:
    """Write regions as JSON.

    Args:
        path: The file.
        regions: The regions, in the order of the list.
        size: (height, width) of the image.
    """
    listed = [
        {
            "class": {"id": region.info.id, "name": region.info.name},
            "box": asdict(region.box),
            "score": region.score,
            "peak": region.peak,
            "pixels": region.pixels,
        }
        for region in regions
    ]
    write_text(path, json.dumps({"height": size[0], "width": size[1], "regions": listed}, indent=1) + "\n")

"""Small pictures of samples and their masks, for HTML pages and picture files. Each is (H, W, 3) uint8 RGB."""

import base64
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnseg import render
from fcnseg.types import ClassMap, LabelMap

_STRIPES = ((176, 176, 176), (214, 214, 214))
_STRIPE = 4
_GAP = 4
_JPEG_QUALITY = 85


def shrink(image: NDArray[np.uint8], longer_side: int) -> NDArray[np.uint8]:
    """Reduce an image by averaging if its longer side exceeds `longer_side`."""
    size = _shrunk_size(image.shape, longer_side)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def paint_ids(ids: ClassMap, label_map: LabelMap, longer_side: int) -> NDArray[np.uint8]:
    """Paint (H, W) ids in their classes' colours, reduced to `longer_side`; pixels without a label are striped."""
    small = cv2.resize(
        ids.astype(np.uint16), _shrunk_size(ids.shape, longer_side), interpolation=cv2.INTER_NEAREST_EXACT
    ).astype(np.uint16)
    painted = render.colour_mask(small, label_map)
    if label_map.ignore_id is not None:
        rows, columns = np.nonzero(small == label_map.ignore_id)
        painted[rows, columns] = np.array(_STRIPES, np.uint8)[(rows + columns) // _STRIPE % 2]
    return painted


def tile(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Arrange rows of pictures on a white background."""
    height = sum(max(p.shape[0] for p in row) + _GAP for row in rows) - _GAP
    width = max(sum(p.shape[1] + _GAP for p in row) for row in rows) - _GAP
    canvas = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for row in rows:
        left = 0
        for picture in row:
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            left += picture.shape[1] + _GAP
        top += max(p.shape[0] for p in row) + _GAP
    return canvas


def encode(picture: NDArray[np.uint8], suffix: str) -> bytes:
    """Return a picture as the bytes of a file: `.png`, or `.jpg` for photographs."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix == ".jpg" else []
    return cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def data_uri(picture: NDArray[np.uint8], suffix: str) -> str:
    """Return a picture as a data URI for an HTML page."""
    kind = {".jpg": "jpeg", ".png": "png"}[suffix]
    return f"data:image/{kind};base64,{base64.b64encode(encode(picture, suffix)).decode()}"


def _shrunk_size(shape: tuple[int, ...], longer_side: int) -> tuple[int, int]:
    """Return (width, height), in OpenCV's order."""
    scale = min(1.0, longer_side / max(shape[:2]))
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))

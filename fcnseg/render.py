"""Render segmentations as pictures for people. Every picture is (H, W, 3) uint8 RGB."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fcnseg.regions import Region
from fcnseg.resample import Grid, resample_to_pixels
from fcnseg.types import LUMA, ClassArea, ClassMap, LabelMap

_LEGEND_ROWS = 24
_PAPER, _INK, _FRAME = (255, 255, 255), (24, 24, 24), (128, 128, 128)


def colour_mask(class_map: ClassMap, label_map: LabelMap) -> NDArray[np.uint8]:
    """Paint every pixel of an (H, W) class map in its class's colour."""
    return label_map.palette[class_map]


def overlay(
    image: NDArray[np.uint8], class_map: ClassMap, label_map: LabelMap, opacity: float = 0.5
) -> NDArray[np.uint8]:
    """Tint an image with its classes' colours, and draw the boundaries between classes in full colour.

    Args:
        image: (H, W, 3) uint8 RGB.
        class_map: (H, W) ids.
        label_map: Gives the colours.
        opacity: Weight of the class's colour in the blend with the image, 0 to 1.
    """
    colours = colour_mask(class_map, label_map)
    picture = _blend(image, colours, opacity)
    lay(colours, boundaries(class_map), picture)
    return picture


def lay(colours: NDArray[np.uint8], where: NDArray[np.bool_], picture: NDArray[np.uint8]) -> None:
    """Copy the pixels of one picture into another where a mask is set; NumPy indexing would take 16 bytes per pixel."""
    cv2.copyTo(colours, where.view(np.uint8), picture)


def boxes(picture: NDArray[np.uint8], regions: Sequence[Region]) -> NDArray[np.uint8]:
    """Draw the boxes of regions on a picture, each with its class and score; the highest scores on top.

    Args:
        picture: (H, W, 3) uint8 RGB, of the size of the regions' image.
        regions: By descending score.
    """
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    size = int(np.clip(min(picture.shape[:2]) / 24, 11, 32))
    font = ImageFont.load_default(size)
    line, gap = max(1, size // 6), 2
    for region in reversed(regions):
        box, colour = region.box, region.info.colour
        # A white outline, since the box's colour may equal the tint below it.
        corners = (box.left, box.top, box.left + box.width - 1, box.top + box.height - 1)
        draw.rectangle(corners, outline=_PAPER, width=line + 1)
        draw.rectangle(corners, outline=colour, width=line)
        text = f"{region.info.name} {region.score:.2f}"
        left = max(0, min(box.left, canvas.width - int(draw.textlength(text, font)) - 2 * gap))
        frame = draw.textbbox((left + gap, box.top + gap), text, font)
        draw.rectangle((left, box.top, frame[2] + gap, frame[3] + gap), fill=colour, outline=_PAPER)
        draw.text((left + gap, box.top + gap), text, fill=_INK if np.dot(colour, LUMA) > 128 else _PAPER, font=font)
    return np.array(canvas)


def boundaries(class_map: ClassMap) -> NDArray[np.bool_]:
    """Mark the pixels of an (H, W) class map that have a neighbour (4-connected) of another class."""
    edges = np.zeros(class_map.shape, bool)
    across = class_map[1:] != class_map[:-1]
    edges[1:] |= across
    edges[:-1] |= across
    along = class_map[:, 1:] != class_map[:, :-1]
    edges[:, 1:] |= along
    edges[:, :-1] |= along
    return edges


def legend(picture: NDArray[np.uint8], classes: Sequence[ClassArea]) -> NDArray[np.uint8]:
    """Add a legend to the right of a picture: colour, name and share of every class present, the largest first.

    Args:
        picture: (H, W, 3) uint8 RGB, such as a colour mask or an overlay.
        classes: Classes present, as `Segmentation.classes`; beyond 24 classes the smallest are counted, not named.

    Returns:
        A wider picture, also higher if the legend needs it.
    """
    size = int(np.clip(picture.shape[0] / 24, 13, 32))
    font = ImageFont.load_default(size)
    ranked = sorted(classes, key=lambda area: (-area.pixels, area.info.id))
    rows = [(f"{area.info.name}  {_percent(area.fraction)}", area.info.colour) for area in ranked[:_LEGEND_ROWS]]
    if len(ranked) > _LEGEND_ROWS:
        rows.append((f"and {len(ranked) - _LEGEND_ROWS} more", _PAPER))
    line, gap = round(size * 1.6), size // 2
    text_width = max((int(font.getlength(text)) + 1 for text, _ in rows), default=0)
    panel_width = gap + size + gap + text_width + gap
    height = max(picture.shape[0], line * len(rows) + 2 * gap)
    canvas = Image.new("RGB", (picture.shape[1] + panel_width, height), _PAPER)
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    left = picture.shape[1] + gap
    for row, (text, colour) in enumerate(rows):
        middle = gap + line * row + line // 2
        if row < _LEGEND_ROWS:
            top = middle - size // 2
            draw.rectangle((left, top, left + size - 1, top + size - 1), fill=colour, outline=_FRAME)
        draw.text((left + size + gap, middle), text, fill=_INK, font=font, anchor="lm")
    return np.array(canvas)


def heatmap(
    image: NDArray[np.uint8], scores: NDArray[np.float32], grid: Grid, opacity: float = 0.65
) -> NDArray[np.uint8]:
    """Draw one class's scores over the greyed image, from the lowest (dark) to the highest, each cell at its position.

    Args:
        image: (H, W, 3) uint8 RGB.
        scores: (h, w) float, one class of the image's `Segmentation.heatmap`; NaN is drawn as the lowest score.
        grid: The model's geometry, or a server's `HeatmapGrid`: where the cells lie.
        opacity: Weight of the scores' colour in the blend with the image, 0 to 1.
    """
    values = resample_to_pixels(_finite(scores), grid, image.shape[0], image.shape[1])
    low, high = float(values.min()), float(values.max())
    spread = high - low or 1.0
    levels = ((values - low) * (255 / spread)).round().astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _blend(grey.astype(np.uint8, copy=False), colours.astype(np.uint8, copy=False), opacity)


def _finite(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace infinite scores by the highest and lowest finite ones, and NaN by the lowest."""
    known = np.isfinite(scores)
    if known.all():
        return scores
    low, high = (scores[known].min(), scores[known].max()) if known.any() else (0, 0)
    return np.nan_to_num(scores, nan=low, posinf=high, neginf=low)


def _blend(below: NDArray[np.uint8], above: NDArray[np.uint8], opacity: float) -> NDArray[np.uint8]:
    return cv2.addWeighted(below, 1 - opacity, above, opacity, 0).astype(np.uint8, copy=False)


def _percent(fraction: float) -> str:
    return "< 0.1 %" if fraction < 0.001 else f"{100 * fraction:.1f} %"

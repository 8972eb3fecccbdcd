"""Generated scenes: a small labelled data set in which a class is a shape of any colour and texture.

Every image has a few shapes on a textured background. Texture, colours, size, rotation and position are random, later
shapes cover earlier ones, and a lighting gradient and noise are applied to the whole image, so that only the outline
identifies the class. The masks are exact: shapes are drawn without anti-aliasing.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcnseg import masks
from fcnseg.errors import UsageError
from fcnseg.files import write_bytes, write_text
from fcnseg.regions import Box
from fcnseg.types import ClassInfo, LabelMap
from training.labels import CLASSES_FILE, IGNORE_ID, write_label_map

CLASS_NAMES = ("background", "disc", "triangle", "ring", "cross")
LABEL_MAP = LabelMap.from_names(CLASS_NAMES, ignore_id=IGNORE_ID)
MIN_SIZE = 32
_ASPECTS = (0.75, 1.0, 1.0, 1.0, 4 / 3)
_TRIES = 20
_MAX_COVERED = 0.2  # share of an earlier shape's visible pixels: a sliver's outline does not show its class
_MIN_CONTRAST = 75.0  # distance of mean colours, in levels


@dataclass(frozen=True)
class SceneShape:
    """One shape of a scene.

    Attributes:
        info: The shape's class.
        box: The tight box of the shape's visible pixels.
    """

    info: ClassInfo
    box: Box


@dataclass(frozen=True, eq=False)
class Scene:
    """One generated image with its mask.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 class ids.
        shapes: The shapes in the order they were drawn, later ones over earlier ones.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    shapes: tuple[SceneShape, ...]


def draw_scene(seed: tuple[int, ...], size: int) -> Scene:
    """Draw the scene of a seed: the same seed and size give the same bytes.

    Args:
        seed: Non-negative numbers; scenes of different seeds are independent.
        size: Pixels along the scene's longer side; some scenes are narrower or lower.
    """
    random = np.random.default_rng(seed)
    aspect = float(random.choice(_ASPECTS))
    height, width = round(size * min(1.0, aspect)), round(size * min(1.0, 1 / aspect))
    image = _texture(random, height, width)
    mask = np.zeros((height, width), np.uint8)
    shapes: list[NDArray[np.bool_]] = []  # the visible pixels of each, earlier ones below later ones
    drawn: list[ClassInfo] = []
    for _ in range(int(random.choice((1, 2, 2, 3)))):
        class_id = int(random.integers(1, len(CLASS_NAMES)))
        inside = _place(random, class_id, shapes, height, width)
        if inside is None:
            continue
        image = np.where(
            inside[..., None], _contrasting_texture(random, image[inside].mean(axis=0), image.shape), image
        )
        mask[inside] = class_id
        shapes = [*(shape & ~inside for shape in shapes), inside]
        drawn.append(LABEL_MAP.classes[class_id])
    lit = image * _lighting(random, height, width)[..., None]
    noisy = lit + random.normal(0, random.uniform(2, 12), lit.shape)
    visible = tuple(SceneShape(info, Box.around(shape)) for info, shape in zip(drawn, shapes, strict=True))
    return Scene(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), mask, visible)


def write_scenes(folder: Path, counts: dict[str, int], *, size: int = 128, seed: int = 0) -> Iterator[Path]:
    """Write a data set of scenes in the layout images/ masks/ SPLIT.txt classes.json, image by image.

    Args:
        folder: The target folder; it must be empty or not exist.
        counts: Number of scenes by split.
        size: Pixels along a scene's longer side, at least 32.
        seed: The same seed gives the same bytes.

    Yields:
        The path of each image written. The split lists and classes.json follow the last one.

    Raises:
        UsageError: The size is too small, a count is below 1, or the folder is not empty.
    """
    if size < MIN_SIZE:
        raise UsageError(f"scenes of {size} pixels are too small to tell shapes; use at least {MIN_SIZE}")
    if min(counts.values()) < 1:
        raise UsageError(f"the numbers of scenes are {counts}; each must be at least 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} already holds something; name a new folder for the scenes, or remove it first")
    lists: dict[str, list[str]] = {}
    for split_index, (split, count) in enumerate(counts.items()):
        for i in range(count):
            scene = draw_scene((seed, split_index, i), size)
            name = f"{split}_{i:04d}.png"
            write_bytes(folder / "images" / name, _encode_png(scene.image))
            write_bytes(folder / "masks" / name, masks.encode(scene.mask, masks.Encoding.PNG, LABEL_MAP))
            lists.setdefault(split, []).append(name)
            yield folder / "images" / name
    for split, names in lists.items():
        write_text(folder / f"{split}.txt", "\n".join(names) + "\n")
    write_label_map(folder / CLASSES_FILE, LABEL_MAP)


def _encode_png(image: NDArray[np.uint8]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "png", compress_level=1)
    return data.getvalue()


def _place(
    random: np.random.Generator, class_id: int, shapes: list[NDArray[np.bool_]], height: int, width: int
) -> NDArray[np.bool_] | None:
    """Return a shape's pixels, (H, W), so that most of each earlier shape stays visible; None if that fails."""
    for _ in range(_TRIES):
        inside = _shape(random, class_id, height, width)
        if all((shape & inside).sum() <= _MAX_COVERED * shape.sum() for shape in shapes):
            return inside
    return None


def _shape(random: np.random.Generator, class_id: int, height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels inside one shape, (H, W); its centre lies in the image."""
    radius = min(height, width) * random.uniform(0.28, 0.42)
    y = random.uniform(0.25, 0.75) * height
    x = random.uniform(0.25, 0.75) * width
    turn = random.uniform(0, 2 * np.pi)
    canvas = np.zeros((height, width), np.uint8)
    name = CLASS_NAMES[class_id]
    if name in {"disc", "ring"}:
        cv2.circle(canvas, (round(x), round(y)), round(radius), 1, cv2.FILLED)
        if name == "ring":
            cv2.circle(canvas, (round(x), round(y)), round(radius * random.uniform(0.4, 0.55)), 0, cv2.FILLED)
    else:
        outline = _cross_outline() if name == "cross" else _triangle_outline()
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        points = np.rint(outline @ rotation.T * radius * 1.15 + (x, y)).astype(np.int32)
        cv2.fillPoly(canvas, [points], 1)
    return canvas.astype(np.bool_)


def _triangle_outline() -> NDArray[np.float64]:
    """Return the corners of an equilateral triangle in the unit circle: (3, 2)."""
    angles = 2 * np.pi * np.arange(3) / 3
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross_outline() -> NDArray[np.float64]:
    """Return the corners of a plus sign with arms 1 long and 0.7 wide: (12, 2)."""
    a, b = 1.0, 0.35
    quarter = np.array([[b, a], [b, b], [a, b]])
    turned = np.array([[0, 1], [-1, 0]])  # by a quarter, clockwise
    corners = [quarter]
    for _ in range(3):
        corners.append(corners[-1] @ turned.T)
    return np.concatenate(corners)


def _texture(random: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return one of several two-colour patterns: (H, W, 3) in 0..255."""
    first, second = random.uniform(20, 235, (2, 3))
    period = random.uniform(5, 16)
    angle = random.uniform(0, np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    along = (x * np.cos(angle) + y * np.sin(angle)) / period
    across = (y * np.cos(angle) - x * np.sin(angle)) / period
    match int(random.integers(6)):
        case 0:  # plain
            pattern = np.zeros_like(x)
        case 1:  # waves
            pattern = 0.5 + 0.5 * np.sin(2 * np.pi * along)
        case 2:  # stripes
            pattern = np.floor(along) % 2
        case 3:  # checkers
            pattern = (np.floor(along) + np.floor(across)) % 2
        case 4:  # dots
            pattern = (np.hypot(along % 1 - 0.5, across % 1 - 0.5) < 0.3).astype(np.float64)
        case _:
            pattern = _clouds(random, height, width)
    weight = pattern[..., None] * random.uniform(0.2, 0.5)
    blended: NDArray[np.float64] = first * (1 - weight) + second * weight
    return blended


def _contrasting_texture(
    random: np.random.Generator, under: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return a texture, (H, W, 3), whose mean colour differs from the mean colour (3,) that it covers."""
    for _ in range(_TRIES):
        texture = _texture(random, shape[0], shape[1])
        if np.linalg.norm(texture.mean(axis=(0, 1)) - under) >= _MIN_CONTRAST:
            break
    return texture


def _clouds(random: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return smooth noise: (H, W) in 0..1."""
    coarse = random.uniform(0, 1, (6, 6))
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.float64)


def _lighting(random: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return a linear gradient of brightness: (H, W), around 1."""
    angle, strength = random.uniform(0, 2 * np.pi), random.uniform(0, 0.5)
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    gradient: NDArray[np.float64] = 1 + strength * (x * np.cos(angle) + y * np.sin(angle))
    return gradient

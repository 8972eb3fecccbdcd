"""Read a sample's mask from a PNG of ids, of palette indices, or of its classes' colours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from fcnseg import masks
from fcnseg.errors import DatasetError, ImageTooLargeError, MaskError
from fcnseg.images import DEFAULT_LIMITS, require_within
from fcnseg.types import Colour
from training.labels import CLASSES_FILE, Labels


class MaskSource(Protocol):
    """The source of a mask; `str()` gives its name for messages."""

    @property
    def name(self) -> str:
        """The name of the file."""
        ...

    def read(self) -> NDArray[np.uint8]:
        """Return the mask, (H, W) uint8 ids.

        Raises:
            DatasetError: The mask cannot be read; the message names it and the remedy.
        """
        ...

    def content(self) -> bytes:
        """Return bytes that determine the mask, for a fingerprint."""
        ...


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A mask PNG: grey values or palette indices are ids; RGB pixels have the colours of classes.

    Attributes:
        path: The file.
        labels: Gives the classes' colours; None if the data set does not name its classes.
        renumbered: The new id for each of the 256 ids in the file; None to keep the ids.
    """

    path: Path
    labels: Labels | None = None
    renumbered: bytes | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def read(self) -> NDArray[np.uint8]:
        """Return the mask, (H, W) uint8 ids.

        Raises:
            DatasetError: The file cannot be read, has more pixels than an image may have, or has an id above 255 or a
                colour of no class.
        """
        _require_within_limits(self.path)
        try:
            mask = masks.read_ids(self.path)
        except MaskError as error:
            rgb = _read_rgb(self.path)
            if rgb is None:
                raise DatasetError(str(error)) from error
            return self._ids_of(rgb)
        if mask.dtype != np.uint8 and mask.max() > np.iinfo(np.uint8).max:
            raise DatasetError(f"mask {self.path} holds the id {mask.max()}; training takes ids of 0 to 255")
        ids: NDArray[np.uint8] = mask.astype(np.uint8, copy=False)
        if self.renumbered is not None:
            ids = np.frombuffer(self.renumbered, np.uint8)[ids]
        return ids

    def content(self) -> bytes:
        """Return bytes that determine the mask, for a fingerprint."""
        return self.path.read_bytes()

    def _ids_of(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.labels is None or not self.labels.colours:
            raise DatasetError(
                f"mask {self.path} is drawn in colours, and nothing says which class has which; give each class its"
                f" colour in {CLASSES_FILE} (palette_rgb), or write masks of ids"
            )
        codes, class_ids = _code_table(self.labels)
        pixels = _codes(rgb)
        places = np.searchsorted(codes, pixels).clip(max=len(codes) - 1)
        unknown = codes[places] != pixels
        if unknown.any():
            row, column = (int(i) for i in np.unravel_index(int(unknown.argmax()), unknown.shape))
            colour = tuple(int(c) for c in rgb[row, column])
            raise DatasetError(
                f"mask {self.path} has the colour {colour} at row {row}, column {column}, which is no class's in"
                f" {self.labels.source} ({int(unknown.sum())} such pixels); correct the mask or {self.labels.source}"
            )
        ids: NDArray[np.uint8] = class_ids[places]
        return ids


def _require_within_limits(path: Path) -> None:
    """Refuse a mask that is larger than any image may be, before memory is allocated for its pixels."""
    png = _open_png(path)
    if png is None:
        return
    with png:
        try:
            require_within(DEFAULT_LIMITS, png.height, png.width, f"mask {path}")
        except ImageTooLargeError as error:
            raise DatasetError(str(error)) from error


def _open_png(path: Path) -> PngImageFile | None:
    """Read a PNG's header; return None if that fails: the reader of ids will report the error."""
    try:
        return PngImageFile(path)
    except Exception:  # noqa: BLE001  # damaged headers raise anything
        return None


def _read_rgb(path: Path) -> NDArray[np.uint8] | None:
    """Read an RGB or RGBA PNG as (H, W, 3) uint8 without its alpha; None if the file is something else."""
    png = _open_png(path)
    if png is None:
        return None
    with png:
        if png.mode not in {"RGB", "RGBA"}:
            return None
        try:
            pixels: NDArray[np.uint8] = np.asarray(png.convert("RGB"))
        except Exception as error:  # damaged pixels raise OSError, ValueError, SyntaxError ...
            raise DatasetError(f"mask {path} is damaged or cut short ({error}); make it again") from error
    return pixels


def _codes(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    wide = rgb.astype(np.int32)
    codes: NDArray[np.int32] = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return codes


def _code_table(labels: Labels) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return the colours as numbers in ascending order, and the id of each."""
    by_colour: dict[Colour, int] = {}
    for colour, i in labels.colours:
        if by_colour.setdefault(colour, i) != i:
            raise DatasetError(
                f"{labels.source} gives the colour {colour} to the ids {by_colour[colour]} and {i}, so that masks in"
                " colours cannot be read; give each a colour of its own"
            )
    codes = _codes(np.array(list(by_colour), np.uint8))
    order = np.argsort(codes)
    return codes[order], np.array(list(by_colour.values()), np.uint8)[order]

"""COCO's run-length encoding of class maps: a mask for each class, in column-major order.

A mask's counts are the lengths of alternating runs of pixels outside and inside it, starting outside. In the text form,
each count from the fourth on is replaced by its difference from the count two before it. Numbers are written in groups
of 5 bits, the lowest first, one ASCII character per group: 48 + the bits, + 32 if another group follows. The last
group's highest bit is the sign (https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c).

pycocotools writes the text, but does not read it here: it reads beyond the end of truncated text, and returns
uninitialised memory if the counts end before the mask does.
"""

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray
from pycocotools import mask as coco_mask

from fcnseg.errors import MaskError
from fcnseg.types import ClassMap

# With more pixels, a few counts may fill pycocotools' buffer completely, so that it writes its end mark beyond it.
_MOST_PIXELS = 1 << 26
_PIXEL_BYTES = 36
_MOST_GROUPS = 7  # a count of up to 2^31 and its sign
_FIRST_CHARACTER = 48
_MORE = 0x20
_SIGN = 0x10


def encode(class_map: ClassMap, other_id: int | None = None) -> dict[int, bytes]:
    """Encode a class map as a mask for each class present, exactly as `pycocotools.mask.encode` encodes each mask.

    Args:
        class_map: (H, W) ids, uint8 or uint16; at most 2^26 pixels.
        other_id: An id that gets no mask.

    Returns:
        Compressed counts by ascending id; the size of each mask is [H, W].

    Raises:
        MaskError: There are too many pixels.
    """
    height, width = class_map.shape
    require_encodable(height, width)
    if class_map.size == 0:
        return {}
    edges, ids = _find_runs(class_map)
    firsts = _starts_of_runs(ids)
    masks = {}
    for first, last in zip(firsts, np.append(firsts[1:], ids.size), strict=True):
        if ids[first] == other_id:
            continue
        counts = np.diff(edges[first:last].reshape(-1), prepend=0)
        if edges[last - 1, 1] < class_map.size:
            counts = np.append(counts, class_map.size - edges[last - 1, 1])
        written = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        masks[int(ids[first])] = bytes(written["counts"])
    return masks


def encoding_bytes(height: int, width: int) -> int:
    """Estimate the most bytes that encoding takes in addition to class map and counts: those for a checkerboard."""
    return height * width * _PIXEL_BYTES


def require_encodable(height: int, width: int) -> None:
    """Check the size of a class map that is to be encoded.

    Raises:
        MaskError: There are too many pixels.
    """
    if height * width > _MOST_PIXELS:
        raise MaskError(
            f"a class map of {height} x {width} pixels is beyond what COCO's tools encode ({_MOST_PIXELS} pixels); take"
            " another encoding"
        )


def decode(
    runs: Mapping[int, bytes], *, shape: tuple[int, int], dtype: DTypeLike, other_id: int | None = None
) -> ClassMap:
    """Decode the masks of a class map; its shape bounds the memory used, whatever the bytes claim.

    Args:
        runs: Compressed counts by id.
        shape: (H, W).
        dtype: uint8 or uint16.
        other_id: The id of pixels in no mask; None if every pixel must be in a mask.

    Returns:
        (H, W) ids of that dtype, writable.

    Raises:
        MaskError: A mask has another shape or its bytes are not counts, masks overlap, or a pixel is in no mask.
    """
    height, width = shape
    pixels = height * width
    if pixels >= 1 << 31:
        raise MaskError(f"run lengths of {height} x {width} pixels are beyond the limit of 2^31 - 1; send fewer pixels")
    dtype = np.dtype(dtype)
    if other_id is not None and not 0 <= other_id <= np.iinfo(dtype).max:
        raise MaskError(f"the id of other pixels is {other_id}, which {dtype.name} cannot hold: ask for them again")
    starts, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    ids = [np.zeros(0, dtype)]
    covered = 0
    for class_id, text in runs.items():
        if not 0 <= class_id <= np.iinfo(dtype).max or class_id == other_id:
            raise MaskError(f"run lengths of id {class_id}, which is no class of {dtype.name} ids: ask for them again")
        counts = _read_counts(text, pixels, f"run lengths of id {class_id}")
        inside = counts[1::2]
        covered += int(inside.sum())
        if covered > pixels:
            raise MaskError(f"run lengths of id {class_id} overlap those of other ids: ask for them again")
        starts.append(np.cumsum(counts)[: 2 * inside.size : 2])
        lengths.append(inside)
        ids.append(np.full(inside.size, class_id, dtype))
    if covered < pixels and other_id is None:
        raise MaskError(f"run lengths leave {pixels - covered} of {pixels} pixels without a class: ask for them again")
    if pixels == 0:
        return np.zeros(shape, dtype)
    filler = dtype.type(0 if other_id is None else other_id)
    columns = _paint(np.concatenate(starts), np.concatenate(lengths), np.concatenate(ids), filler, pixels)
    class_map: ClassMap = cv2.transpose(columns.reshape(width, height))  # type: ignore[assignment]
    return class_map


def _find_runs(class_map: ClassMap) -> tuple[NDArray[np.int32], ClassMap]:
    """Return (N, 2) starts and ends and the ids of runs of equal ids in column-major order, grouped by id."""
    columns: NDArray[np.generic] = np.asarray(cv2.transpose(np.ascontiguousarray(class_map))).reshape(-1)
    starts = _starts_of_runs(columns)
    ids: ClassMap = columns[starts]  # type: ignore[assignment]
    order = np.argsort(ids, kind="stable").astype(np.int32)
    edges = np.empty((starts.size, 2), np.int32)
    edges[:, 0] = starts[order]
    starts[:-1], starts[-1] = starts[1:], columns.size  # the ends
    edges[:, 1] = starts[order]
    return edges, ids[order]


def _starts_of_runs(values: NDArray[np.generic]) -> NDArray[np.int32]:
    changes = np.ones(values.size, bool)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return np.flatnonzero(changes).astype(np.int32)


def _read_counts(text: bytes, pixels: int, what: str) -> NDArray[np.int64]:
    """Read one mask's counts; only the first may be 0."""
    if not 0 < len(text) <= _MOST_GROUPS * (pixels + 1):
        raise MaskError(f"{what} have {len(text)} bytes, which no mask of {pixels} pixels has: ask for them again")
    try:
        counts = read_numbers(text)
    except ValueError as error:
        raise MaskError(f"{what} {error}: ask for them again") from error
    if np.abs(counts).max() <= pixels:  # else the sums might overflow
        add_differences(counts)
        if counts[0] >= 0 and (counts[1:] > 0).all() and counts.max() <= pixels and counts.sum() == pixels:
            return counts
    raise MaskError(f"{what} are not those of a mask of {pixels} pixels: ask for them again")


def read_numbers(text: bytes) -> NDArray[np.int64]:
    """Read the numbers of COCO's text form; from the fourth on they are differences (see `add_differences`).

    Raises:
        ValueError: The text is not valid; the message says what is wrong with its numbers.
    """
    groups = np.frombuffer(text, np.uint8) - np.uint8(_FIRST_CHARACTER)  # lower characters wrap to above 63
    ends = np.flatnonzero(groups & _MORE == 0)
    if ends.size == 0 or ends[-1] != groups.size - 1 or groups.max() > 63:
        raise ValueError("are not COCO's text, or are cut short")
    sizes = np.diff(ends, prepend=-1)
    if sizes.max() > _MOST_GROUPS:
        raise ValueError("hold a number beyond all images")
    first_groups = ends - sizes + 1
    places = np.arange(groups.size) - np.repeat(first_groups, sizes)
    numbers: NDArray[np.int64] = np.add.reduceat((groups & 0x1F).astype(np.int64) << 5 * places, first_groups)
    numbers -= (groups[ends] & _SIGN != 0) * (np.int64(1) << 5 * sizes)
    return numbers


def add_differences(numbers: NDArray[np.int64]) -> None:
    """Turn the numbers of COCO's text form into counts, in place, by adding up the differences.

    The numbers are below 2^35, so sums of 2^28 of them fit.
    """
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])


def _paint(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], ids: ClassMap, filler: np.generic, pixels: int
) -> ClassMap:
    """Return `pixels` ids: those of the runs, and the filler between the runs."""
    order = np.argsort(starts, kind="stable")
    starts, lengths, ids = starts[order], lengths[order], ids[order]
    ends = starts + lengths
    gaps = np.diff(starts, prepend=0)
    gaps[1:] -= lengths[:-1]
    if (gaps < 0).any():
        raise MaskError("run lengths of different ids overlap: ask for them again")
    values = np.full(2 * ids.size + 1, filler, ids.dtype)
    values[1::2] = ids
    repeats = np.empty(values.size, np.int64)
    repeats[0:-1:2], repeats[1::2] = gaps, lengths
    repeats[-1] = pixels - (ends[-1] if ends.size else 0)
    painted: ClassMap = np.repeat(values, repeats)
    return painted

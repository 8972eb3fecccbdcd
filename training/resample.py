"""Resample scores from one grid to another by the constant stride and the offset, never by a size.

Along one axis, target cell t is centred at pixel `to.offset + to.stride * t`, which has the source coordinate

    u = (to.offset + to.stride * t - source.offset) / source.stride

and takes its score from the two source cells around u, weighted linearly. This is the bilinear transposed convolution
of arXiv 1411.4038 with the phase that follows from the offsets; coordinates before the first or after the last source
cell take that cell's score. As products with two small matrices it needs no crops and no kernel, and onnxruntime's CPU
provider runs it several times faster than a grouped transposed convolution (docs/decisions/).
"""

import torch
from torch import Tensor

from training.grid import Lattice

PIXELS = Lattice(1, 0.0)


def resample(
    scores: Tensor, source: tuple[Lattice, Lattice], target: tuple[Lattice, Lattice], size: tuple[int, int]
) -> Tensor:
    """Bilinearly resample a map from one lattice to another.

    Args:
        scores: (N, K, h, w) float on `source`.
        source: (y, x) lattices of the scores.
        target: (y, x) lattices of the result.
        size: (height, width) of the result; cells beyond the source's last cell repeat it.

    Returns:
        (N, K, height, width) of the same dtype.
    """
    rows, columns = _matrices(scores, source, target, size)
    return rows @ (scores @ columns.T)


def resample_channels_last(
    scores: Tensor, source: tuple[Lattice, Lattice], target: tuple[Lattice, Lattice], size: tuple[int, int]
) -> Tensor:
    """Do the same as `resample` but return (N, height, width, K), the layout for a GPU's arg-max over the channels."""
    rows, columns = _matrices(scores, source, target, size)
    wide = columns @ scores.permute(0, 2, 3, 1)  # (N, h, width, K)
    tall = rows @ wide.reshape(wide.shape[0], wide.shape[1], -1)  # (N, height, width * K)
    return tall.reshape(wide.shape[0], size[0], size[1], -1)


def enlarge_nearest(
    values: Tensor, source: tuple[Lattice, Lattice], target: tuple[Lattice, Lattice], size: tuple[int, int]
) -> Tensor:
    """Give each target cell the value of the nearest source cell.

    Args:
        values: (N, h, w), any dtype, on `source`.
        source: (y, x) lattices of the values.
        target: (y, x) lattices wanted.
        size: (height, width) of the result.

    Returns:
        (N, height, width) of the same dtype.
    """
    rows = _coordinates(source[0], target[0], values.shape[1], size[0], values.device).round().long()
    columns = _coordinates(source[1], target[1], values.shape[2], size[1], values.device).round().long()
    return values.index_select(1, rows).index_select(2, columns)


def _matrices(
    scores: Tensor, source: tuple[Lattice, Lattice], target: tuple[Lattice, Lattice], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the matrices that interpolate rows, (height, h), and columns, (width, w)."""
    rows = interpolation_matrix(source[0], target[0], scores.shape[2], size[0], scores)
    return rows, interpolation_matrix(source[1], target[1], scores.shape[3], size[1], scores)


def interpolation_matrix(source: Lattice, target: Lattice, cells: int, size: int, like: Tensor) -> Tensor:
    """Return the (size, cells) matrix that interpolates linearly from one lattice to another; its rows sum to 1.

    Args:
        source: Lattice of the values.
        target: Lattice of the result.
        cells: Number of source cells.
        size: Number of target cells.
        like: Gives dtype and device.
    """
    u = _coordinates(source, target, cells, size, like.device)
    distance = (u[:, None] - torch.arange(cells, dtype=torch.float32, device=like.device)).abs()
    return (1 - distance).clamp(min=0).to(like.dtype)


def _coordinates(source: Lattice, target: Lattice, cells: int, size: int, device: torch.device) -> Tensor:
    """Return (size,) float32 source coordinates of the target cells, clamped to the source's cells."""
    t = torch.arange(size, dtype=torch.float32, device=device)
    u = (t * target.stride + (target.offset - source.offset)) / source.stride
    return u.clamp(min=0).clamp(max=cells - 1)

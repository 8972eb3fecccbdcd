"""Compute the classes of pixels from the scores of cells, in blocks of pixels between four neighbouring cells.

A pixel's score for a class is interpolated between the four cells around it (`training.resample`), so it is a weighted
mean. If one class wins at all four cells, it therefore wins at every pixel between them, and nothing has to be computed
there. Rounding cannot change this, because rounded products with a weight and rounded sums keep the order of their
operands. Only the blocks on the borders between classes remain. All blocks of a lattice with an integer stride have the
same weights, so that they can be computed as one matrix product.
"""

import math

import torch
from torch import Tensor

from training.grid import Lattice
from training.resample import PIXELS, interpolation_matrix


class PixelBlocks:
    """The pixels of an image in blocks, with the scores at the corners of each block.

    Args:
        scores: (N, K, h, w) float scores of cells.
        source: (y, x) lattices of the cells, with integer strides.
        size: (height, width) of the image; pixels beyond the outermost cells take those cells' scores.
    """

    def __init__(self, scores: Tensor, source: tuple[Lattice, Lattice], size: tuple[int, int]) -> None:
        self._size = size
        self._y, self._x = (_BlockAxis(lattice, pixels) for lattice, pixels in zip(source, size, strict=True))
        rows, columns = self._y.cells(scores.shape[2], scores.device), self._x.cells(scores.shape[3], scores.device)
        self._scores = scores.permute(0, 2, 3, 1).index_select(1, rows).index_select(2, columns)  # (N, p+1, q+1, K)
        weights = (axis.weights(scores)[shape] for axis, shape in ((self._y, _DOWN), (self._x, _ACROSS)))
        self._weights = torch.mul(*weights).reshape(-1, 4).T  # (4, pixels of a block)
        first, second, third, fourth = _corners(self._scores.argmax(3).to(torch.int32))
        self._mixed = (first != second) | (first != third) | (first != fourth)  # (N, p, q)
        self._corner_class = first.to(torch.uint8)

    def classes(self) -> Tensor:
        """Return the best class of every pixel, (N, height, width) uint8; scores are computed only at borders."""
        image, row, column = self._mixed.nonzero(as_tuple=True)
        corners = [self._scores[image, row + down, column + right] for down in (0, 1) for right in (0, 1)]
        # All mixed blocks and classes are rows of one matrix product, which may have no rows.
        best = (torch.stack(corners, 2) @ self._weights).argmax(1).to(torch.uint8)  # (mixed, pixels)
        uniform = self._corner_class[..., None].expand(-1, -1, -1, best.shape[1])
        return self._joined(uniform.index_put((image, row, column), best))

    def classes_and_confidences(self) -> tuple[Tensor, Tensor]:
        """Return the best class of every pixel and its probability.

        Returns:
            Classes, (N, height, width) uint8; the winners' softmax probabilities times 255, rounded, of the same shape,
            uint8.
        """
        scores = torch.stack(_corners(self._scores), 4) @ self._weights  # (N, p, q, K, pixels)
        best = scores.argmax(3).to(torch.uint8)
        classes = torch.where(self._mixed[..., None], best, self._corner_class[..., None])
        probability = 1 / (scores - scores.amax(3, keepdim=True)).exp().sum(3)
        return self._joined(classes), self._joined((probability * 255).round().to(torch.uint8))

    def _joined(self, blocks: Tensor) -> Tensor:
        """Join (N, p, q, pixels) blocks and crop the image from them."""
        y, x = self._y, self._x
        cut = blocks.reshape(-1, y.blocks, x.blocks, y.stride, x.stride).permute(0, 1, 3, 2, 4)
        whole = cut.reshape(-1, y.blocks * y.stride, x.blocks * x.stride)
        return whole[:, y.skipped : y.skipped + self._size[0], x.skipped : x.skipped + self._size[1]]


_DOWN, _ACROSS = (slice(None), None, slice(None), None), (None, slice(None), None, slice(None))


class _BlockAxis:
    """The blocks along one axis: block b has the pixels from the centre of cell `first_cell` + b to the next centre.

    Attributes:
        stride: Number of pixels in a block.
        blocks: Number of blocks that cover the image.
        skipped: Pixels of the first block that lie before the image.
    """

    def __init__(self, lattice: Lattice, pixels: int) -> None:
        self.stride = int(lattice.stride)
        first_cell = math.floor(-lattice.offset / self.stride)  # the last one that is centred at pixel 0 or before
        first_centre = lattice.offset + first_cell * self.stride
        self.skipped = -math.ceil(first_centre)
        self.blocks = (pixels + self.skipped + self.stride - 1) // self.stride
        self._first_cell = first_cell
        self._phase = -self.skipped - first_centre

    def cells(self, count: int, device: torch.device) -> Tensor:
        """Return (blocks + 1,) indices of the cells at the blocks' ends, clamped to the `count` existing cells."""
        cells = torch.arange(self.blocks + 1, device=device) + self._first_cell
        return cells.clamp(min=0).clamp(max=count - 1)

    def weights(self, like: Tensor) -> Tensor:
        """Return (stride, 2) weights of the cells before and after each pixel of a block."""
        return interpolation_matrix(Lattice(self.stride, -self._phase), PIXELS, 2, self.stride, like)


def _corners(cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the upper left, upper right, lower left and lower right cells of every block, each (N, p, q, ...)."""
    upper, lower = cells[:, :-1], cells[:, 1:]
    return upper[:, :, :-1], upper[:, :, 1:], lower[:, :, :-1], lower[:, :, 1:]

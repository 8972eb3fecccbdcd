"""Grids: the pixels that each cell of a map depends on.

Along one axis, cell i of a map depends on the pixels `first + stride * i` to `last + stride * i` and on no others; its
centre is the middle of that interval and the interval's length is its receptive field. A convolution with kernel k,
stride s, left padding p and dilation d turns (stride, first, last) into

    (stride * s, first - stride * p, last + stride * (d * (k - 1) - p))

and where branches meet, the interval becomes the union of theirs.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

from fcnseg.errors import ArchitectureError

_ORIGIN = Fraction(0)


@dataclass(frozen=True)
class AxisGrid:
    """The pixels that the cells of a map depend on, along one axis.

    Attributes:
        stride: Pixels from one cell to the next; a fraction for maps finer than the image.
        first: First pixel that cell 0 depends on; negative if it lies in the padding.
        last: Last pixel that cell 0 depends on.
    """

    stride: Fraction = Fraction(1)
    first: Fraction = _ORIGIN
    last: Fraction = _ORIGIN

    @property
    def offset(self) -> float:
        """Pixel coordinate of cell 0's centre."""
        return float((self.first + self.last) / 2)

    @property
    def field(self) -> int:
        """Receptive field in pixels."""
        return int(self.last - self.first) + 1

    def convolved(self, kernel: int, stride: int, padding: int, dilation: int) -> "AxisGrid":
        """The grid after a convolution or pooling; `padding` counts the cells before the first."""
        return AxisGrid(
            self.stride * stride,
            self.first - self.stride * padding,
            self.last + self.stride * (dilation * (kernel - 1) - padding),
        )

    def transposed(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> "AxisGrid":
        """The grid after a transposed convolution: cell j reads cells (j + p - d * (k - 1)) / s to (j + p) / s."""
        step = self.stride / stride
        return AxisGrid(step, self.first + step * (padding - dilation * (kernel - 1)), self.last + step * padding)

    def shifted(self, cells: int) -> "AxisGrid":
        """Return the grid whose cell 0 is this grid's cell `cells`."""
        return replace(self, first=self.first + self.stride * cells, last=self.last + self.stride * cells)

    def resampled(self, offset: float, stride: int) -> "AxisGrid":
        """The grid of this map's values interpolated at `offset + stride * t` from the neighbouring cells."""
        reach_before = Fraction(self.offset) - self.first + self.stride
        reach_behind = self.last - Fraction(self.offset) + self.stride
        return AxisGrid(Fraction(stride), Fraction(offset) - reach_before, Fraction(offset) + reach_behind)

    def joined(self, other: "AxisGrid") -> "AxisGrid":
        """The grid of a map that takes each cell from both grids.

        Raises:
            ArchitectureError: The strides differ.
        """
        if self.stride != other.stride:
            raise ArchitectureError(
                f"maps of stride {self.stride} and {other.stride} are combined cell by cell, so the net has no grid"
            )
        return AxisGrid(self.stride, min(self.first, other.first), max(self.last, other.last))


@dataclass(frozen=True)
class Grid:
    """The grids of both axes."""

    y: AxisGrid = AxisGrid()
    x: AxisGrid = AxisGrid()

    def joined(self, other: "Grid") -> "Grid":
        """The grid of a map that takes each cell from both grids.

        Raises:
            ArchitectureError: The strides differ.
        """
        return Grid(self.y.joined(other.y), self.x.joined(other.x))


@dataclass(frozen=True)
class Lattice:
    """Where the cells of a map lie along one axis: the centre of cell i is pixel `offset + stride * i`."""

    stride: int
    offset: float


def lattices(grid: Grid) -> tuple[Lattice, Lattice]:
    """The (y, x) lattices of a grid whose strides are whole pixels."""
    y, x = (Lattice(int(axis.stride), axis.offset) for axis in (grid.y, grid.x))
    return y, x

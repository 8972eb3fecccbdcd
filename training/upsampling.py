"""Learned upsampling: transposed convolutions that are initialised to bilinear interpolation."""

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

from fcnseg.errors import ArchitectureError
from training.grid import Lattice


class LearnedUpsampling(nn.Module):
    """A transposed convolution from one map's lattice to a finer one's, bilinear until it is trained.

    The released FCNs' "upscore" layers have kernel 2f and stride f and start as bilinear filters (arXiv 1411.4038,
    section 3.3). Here the filters' phase follows from the two maps' offsets, and the map is edge-padded before it is
    convolved, in agreement with `training.resample`. Initially no class depends on another.

    Args:
        channels: Number of channels of both the scores and the result, K.
        source: (y, x) lattices of the scores.
        target: (y, x) lattices of the result.

    Raises:
        ArchitectureError: A source stride is not a multiple of the target's.
    """

    def __init__(self, channels: int, source: tuple[Lattice, Lattice], target: tuple[Lattice, Lattice]) -> None:
        super().__init__()
        phases = [_Phase(coarse, fine) for coarse, fine in zip(source, target, strict=True)]
        self._phases = phases
        self.transposed = nn.ConvTranspose2d(
            channels,
            channels,
            (2 * phases[0].factor, 2 * phases[1].factor),
            (phases[0].factor, phases[1].factor),
            bias=False,
        )
        kernel = torch.outer(phases[0].filter(), phases[1].filter())
        with torch.no_grad():
            self.transposed.weight.copy_(torch.eye(channels)[:, :, None, None] * kernel)

    def forward(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Upsample scores to the finer lattice.

        Args:
            scores: (N, K, h, w) on the source lattice.
            size: (height, width) of the result; cells beyond the source's last cell repeat it.

        Returns:
            (N, K, height, width).
        """
        y, x = self._phases
        rows = _continued(scores.shape[2], y, size[0], scores.device)
        columns = _continued(scores.shape[3], x, size[1], scores.device)
        full: Tensor = self.transposed(scores.index_select(2, rows).index_select(3, columns))
        return full[:, :, y.skipped : y.skipped + size[0], x.skipped : x.skipped + size[1]]


class _Phase:
    """Along one axis: target cell t and source cell i are (t + shift - factor * i) / factor source cells apart."""

    def __init__(self, source: Lattice, target: Lattice) -> None:
        self.factor, rest = divmod(source.stride, target.stride)
        if rest:
            raise ArchitectureError(
                f"scores at stride {source.stride} cannot be upsampled to stride {target.stride} by a whole factor"
            )
        self.shift = Fraction(target.offset - source.offset) / target.stride
        # Cell i reaches the targets factor * i + first to factor * i + first + 2 * factor - 1.
        self.first = math.floor(-self.shift - self.factor) + 1
        # Pad enough cells before cell 0 for all that target 0 reads; the result then begins before target 0.
        self.before = max(0, math.ceil(Fraction(self.first + 2 * self.factor, self.factor)) - 1)
        self.skipped = self.factor * self.before - self.first

    def filter(self) -> Tensor:
        """Return (2 * factor,) float32: the triangular kernel of linear interpolation at this phase."""
        distance = [abs(self.first + j + self.shift) / self.factor for j in range(2 * self.factor)]
        return torch.tensor([max(0.0, float(1 - d)) for d in distance])


def _continued(cells: int, phase: _Phase, size: int, device: torch.device) -> Tensor:
    """Return, for each cell of the edge-padded map that `size` targets read, the index of the cell that it repeats."""
    last = (size - 1 - phase.first) // phase.factor  # the last cell that reaches the last target
    count = phase.before + torch.sym_max(cells, last + 1)
    return (torch.arange(count, device=device) - phase.before).clamp(min=0).clamp(max=cells - 1)

"""Upsampling that is learned: transposed convolutions that start as bilinear interpolation."""

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

from fcnseg.errors import ArchitectureError
from training.grid import Lattice


class LearnedUpsampling(nn.Module):
    """A transposed convolution from one map's lattice to a finer one's, bilinear until it is trained.

    The released FCNs' "upscore" layers have kernel 2f and stride f and start as bilinear filters (arXiv 1411.4038,
    section 3.3). Here the filters' phase follows from the two maps' offsets, and the map is continued by its edge
    before it is convolved, as `training.resample` does it; no class starts by looking at another.

    Args:
        channels: K, of scores and result alike.
        source: (y, x) lattices of the scores.
        target: (y, x) lattices wanted.

    Raises:
        ArchitectureError: A source stride is no multiple of the target's.
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
        """Bring scores to the finer lattice.

        Args:
            scores: (N, K, h, w) on the source lattice.
            size: (height, width) of the result; cells beyond the source's last repeat it.

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
        # So many cells are put before cell 0 that target 0 has all it reads; then the result begins before target 0.
        self.before = max(0, math.ceil(Fraction(self.first + 2 * self.factor, self.factor)) - 1)
        self.skipped = self.factor * self.before - self.first

    def filter(self) -> Tensor:
        """(2 * factor,) float32: the tent of linear interpolation at this phase."""
        distance = [abs(self.first + j + self.shift) / self.factor for j in range(2 * self.factor)]
        return torch.tensor([max(0.0, float(1 - d)) for d in distance])


def _continued(cells: int, phase: _Phase, size: int, device: torch.device) -> Tensor:
    """Which cell each one of a map continued by its edges repeats, so that `size` targets have all that they read."""
    last = (size - 1 - phase.first) // phase.factor  # the last cell that reaches the last target
    count = phase.before + torch.sym_max(cells, last + 1)
    return (torch.arange(count, device=device) - phase.before).clamp(min=0).clamp(max=cells - 1)

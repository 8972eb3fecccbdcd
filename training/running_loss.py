"""The mean loss of an epoch, accumulated on the device that computes the losses."""

import math

from torch import Tensor

_LOOKS_EVERY = 20


class RunningLoss:
    """Accumulates the losses of an epoch's steps.

    Reading a number from a GPU waits for all steps before it, so that the next step cannot be prepared meanwhile.
    Therefore it is read only in the first and every 20th step on a GPU, and in every step on the CPU.

    Attributes:
        seen: The epoch's mean when it was last read; 0 before the first step.
        recent: Mean of the last complete block of 20 steps; 0 before the first block is complete.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.seen = self.recent = 0.0
        self._total: Tensor | float = 0.0
        self._count = 0
        self._total_before = 0.0

    def update(self, loss: Tensor) -> None:
        """Add a step's loss, a scalar without gradient."""
        self._total, self._count = self._total + loss, self._count + 1
        ends_stretch = self._count % _LOOKS_EVERY == 0
        if ends_stretch or self._count == 1 or loss.device.type == "cpu":
            self.seen = self.mean()
        if ends_stretch:
            total = self.seen * self._count
            self.recent, self._total_before = (total - self._total_before) / _LOOKS_EVERY, total

    def mean(self) -> float:
        """Return the mean so far, waiting for a GPU; it is not finite if the loss of any step is not."""
        return float(self._total) / self._count if self._count else math.nan

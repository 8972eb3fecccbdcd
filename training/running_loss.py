"""The mean loss of an epoch, gathered on the device that computes the losses."""

import math

from torch import Tensor

_LOOKS_EVERY = 20


class RunningLoss:
    """Gathers the losses of an epoch's steps.

    Reading a number from a GPU waits until all steps before it are done, which keeps the next one from being prepared
    meanwhile. So it is looked at in every 20th step alone there, and in every step on the CPU.

    Attributes:
        seen: The epoch's mean when it was last looked at; 0 before the first step.
        recent: Mean of the last 20 steps that began with a multiple of 20; 0 before they are done.
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
        """Count a step's loss, a scalar without gradient."""
        self._total, self._count = self._total + loss, self._count + 1
        ends_stretch = self._count % _LOOKS_EVERY == 0
        if ends_stretch or self._count == 1 or loss.device.type == "cpu":
            self.seen = self.mean()
        if ends_stretch:
            total = self.seen * self._count
            self.recent, self._total_before = (total - self._total_before) / _LOOKS_EVERY, total

    def mean(self) -> float:
        """Mean so far, for which a GPU is waited for; not finite as soon as one step's loss is not."""
        return float(self._total) / self._count if self._count else math.nan

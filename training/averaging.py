"""The moving average of the weights, which is what a run validates and keeps."""

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """Averages the weights exponentially, over fewer steps at the beginning than later.

    Step n's decay is min(decay, (1 + n) / (10 + n)): with the full decay from the start, the first epochs would be
    validated on the weights that they began with. Buffers, such as BatchNorm's statistics, are those of the last step.

    Args:
        decay: What the average keeps of itself at a step, in 0..1.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            n = float(count)
            return torch.lerp(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, avg_fn=average)

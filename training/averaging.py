"""The exponential moving average of the weights, which a run validates and saves."""

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage(WeightAveraging):
    """Keeps an exponential moving average of the weights, over fewer steps at the beginning than later.

    Step n's decay is min(decay, (1 + n) / (10 + n)): with the full decay from the start, validation after the first
    epochs would see almost the initial weights. Buffers, such as BatchNorm's statistics, are those of the last step.

    All tensors of a dtype are averaged at once, so that the GPU is synchronised once per step, not once per tensor.

    Args:
        decay: The weight of the previous average at a step, in 0..1.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            n = float(count)
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)

        super().__init__(use_buffers=False, multi_avg_fn=average)

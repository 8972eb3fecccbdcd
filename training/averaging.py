"""The moving average of the weights, which is what a run validates and keeps."""

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage(WeightAveraging):
    """Averages the weights exponentially, over fewer steps at the beginning than later.

    Step n's decay is min(decay, (1 + n) / (10 + n)): with the full decay from the start, the first epochs would be
    validated on the weights that they began with. Buffers, such as BatchNorm's statistics, are those of the last step.

    All tensors of a type are averaged at once, so that a GPU is waited for once a step, and not for each of them.

    Args:
        decay: What the average keeps of itself at a step, in 0..1.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            n = float(count)
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)

        super().__init__(use_buffers=False, multi_avg_fn=average)

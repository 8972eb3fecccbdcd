"""Detects runs that diverge since their steps are too large, as soon as it shows and not at an epoch's end."""

import math

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from typing_extensions import override

from fcnseg.errors import UsageError
from training.task import SegmentationTask

_RISE = 10
"""A loss of this many times the first one, which is that of a guess, is not noise."""


class DivergenceWatch(Callback):
    """Ends a run whose loss or validation scores are not finite, and warns once if the loss rises far above the first.

    It checks only when the task's running loss has been read anyway, so that no step waits for the device.

    Args:
        console: Where the warning is shown.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._first = 0.0
        self._has_warned = False

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Check the loss as far as it is known.

        Raises:
            UsageError: It is not finite: steps are too large.
        """
        if not isinstance(pl_module, SegmentationTask):
            return
        loss, place = pl_module.running_loss, f"epoch {trainer.current_epoch + 1}, step {batch_idx + 1}"
        _require_finite(loss.seen, place, pl_module)
        self._first = self._first or loss.seen
        if not self._has_warned and loss.recent > _RISE * self._first > 0:
            self._has_warned = True
            self._console.print(
                f"warning: the loss has risen from {self._first:.3g} to {loss.recent:.3g} by {place}: the run diverges;"
                f" take a lower --lr (it was {pl_module.record.config.lr:g})",
                highlight=False,
                soft_wrap=True,
            )

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the loss of the whole epoch, before anything of it is saved.

        Raises:
            UsageError: It is not finite.
        """
        if isinstance(pl_module, SegmentationTask):
            _require_finite(pl_module.running_loss.mean(), f"epoch {trainer.current_epoch + 1}", pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the scores of the validation images, since no loss shows yet what the last step did to the weights.

        Raises:
            UsageError: Scores are not finite.
        """
        if isinstance(pl_module, SegmentationTask) and not pl_module.scores_finite:
            raise UsageError(
                f"the scores of the validation images are not finite after epoch {trainer.current_epoch + 1}; take a"
                f" lower --lr (it was {pl_module.record.config.lr:g})"
            )


def _require_finite(loss: float, place: str, task: SegmentationTask) -> None:
    if not math.isfinite(loss):
        raise UsageError(f"the loss is {loss} in {place}; take a lower --lr (it was {task.record.config.lr:g})")

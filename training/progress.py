"""Show the progress of a training: a bar with loss and mean IoU on a terminal, and one line per epoch everywhere."""

import time

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from typing_extensions import override

from training.task import SegmentationTask


class TrainingProgress(Callback):
    """Shows the training of a `SegmentationTask` on a console; without a terminal, only the line at an epoch's end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._begun = 0.0
        self._latest = ""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self._bar.start()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch's bar."""
        self._begun = time.perf_counter()
        if self._task is not None:
            self._bar.remove_task(self._task)
        name = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._task = self._bar.add_task(name, total=trainer.num_training_batches, figures=self._latest)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Advance by a step."""
        if self._task is not None and isinstance(pl_module, SegmentationTask) and self._console.is_terminal:
            figures = f"loss {pl_module.running_loss.seen:.3f}{self._latest}"
            self._bar.update(self._task, completed=batch_idx + 1, figures=figures)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the epoch is being validated."""
        if self._task is not None:
            self._bar.update(self._task, description=f"validating {trainer.current_epoch + 1}/{trainer.max_epochs}")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line."""
        if not isinstance(pl_module, SegmentationTask) or pl_module.scores is None:
            return
        scores = pl_module.scores
        self._latest = f", val mIoU {scores.mean_iou:.3f}"
        self._console.print(
            f"epoch {trainer.current_epoch + 1:>3}/{trainer.max_epochs}  loss {pl_module.running_loss.mean():.3f}"
            f"  val mIoU {scores.mean_iou:.4f}  pixel accuracy {scores.pixel_accuracy:.4f}"
            f"  {time.perf_counter() - self._begun:.1f} s",
            highlight=False,
            soft_wrap=True,
        )

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._bar.stop()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._bar.stop()

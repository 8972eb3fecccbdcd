"""The training loop: data in, run folder out."""

import contextlib
import csv
import dataclasses
import io
import logging
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from torch.utils.data import DataLoader
from typing_extensions import override

from fcnseg.files import replacing, write_text
from training.augment import TrainingCrops, WholeImages
from training.config import Precision, TrainConfig, write_config
from training.data import Dataset
from training.device import resolve_device
from training.model import SegmentationModel
from training.progress import TrainingProgress
from training.run import BEST, CONFIG, LAST, METRICS, RunRecord
from training.task import SegmentationTask, ignore_value

_PRECISIONS: dict[Precision, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def fit(
    model: SegmentationModel,
    dataset: Dataset,
    data_fingerprint: str,
    config: TrainConfig,
    folder: Path,
    console: Console,
) -> dict[str, float]:
    """Train a model and leave its checkpoints in a run folder.

    Args:
        model: Trained in place.
        dataset: Has the splits `train` and `val`, checked already.
        data_fingerprint: Of those splits, for the checkpoints.
        config: How.
        folder: The run's folder, without an earlier run (see `training.run.prepare_folder`).
        console: Where progress is shown.

    Returns:
        The best epoch's `mean_iou` and `pixel_accuracy`.

    Raises:
        DeviceError: The device asked for is not there.
        KeyboardInterrupt: The run was interrupted; the last checkpoint holds the weights at that moment.
    """
    device = resolve_device(config.device)
    record = RunRecord(config, dataset.label_map, model.mean, model.std, data_fingerprint)
    write_config(folder / CONFIG, config)
    writer = _RunWriter(folder)
    with _quiet_lightning(), _sigint_restored():
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=_PRECISIONS[config.precision],
            max_epochs=config.epochs,
            callbacks=[writer, TrainingProgress(console)],  # an epoch is told when it is kept
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        seed_everything(config.seed, verbose=False)
        train_loader, val_loader = _loaders(dataset, config)
        task = SegmentationTask(model, record)
        task.train()  # Lightning leaves modules in the mode they are in, and a built model is in evaluation mode
        try:
            trainer.fit(task, train_loader, val_loader)
        except SystemExit:
            # Lightning turns an interrupt into an exit.
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
    return writer.best


class _RunWriter(Callback):
    """Writes metrics.csv and the checkpoints as epochs end."""

    def __init__(self, folder: Path) -> None:
        self.best: dict[str, float] = {}
        self._folder = folder
        self._rows: list[dict[str, float]] = []
        self._begun = time.perf_counter()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch: its row, last.ckpt, and best.ckpt if it is the best so far."""
        if not isinstance(pl_module, SegmentationTask) or pl_module.scores is None:
            return
        scores, epoch = pl_module.scores, trainer.current_epoch + 1
        metrics = {"mean_iou": scores.mean_iou, "pixel_accuracy": scores.pixel_accuracy}
        pl_module.record = dataclasses.replace(pl_module.record, epoch=epoch, metrics=metrics)
        seconds = round(time.perf_counter() - self._begun, 2)
        self._rows.append({"epoch": epoch, "loss": pl_module.mean_loss(), **metrics, "seconds": seconds})
        write_text(self._folder / METRICS, _to_csv(self._rows))
        if not self.best or metrics["mean_iou"] > self.best["mean_iou"]:
            self.best = metrics
            _save(trainer, self._folder / BEST, weights_only=True)
        _save(trainer, self._folder / LAST, weights_only=False)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the weights of an interrupted run; they are not those that were measured last."""
        interrupted = isinstance(exception, KeyboardInterrupt) and trainer.global_step > 0
        if interrupted and isinstance(pl_module, SegmentationTask):
            pl_module.record = dataclasses.replace(pl_module.record, metrics={})
            _save(trainer, self._folder / LAST, weights_only=False)


def _save(trainer: Trainer, path: Path, *, weights_only: bool) -> None:
    with replacing(path) as temporary:
        trainer.save_checkpoint(temporary, weights_only=weights_only)


def _to_csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _loaders(dataset: Dataset, config: TrainConfig) -> tuple[DataLoader[Any], DataLoader[Any]]:
    samples = dataset.split("train")
    crops = TrainingCrops(samples, config.crop, ignore_value(dataset.label_map.ignore_id), config.scale_jitter)
    pinned = resolve_device(config.device) == "cuda"
    return (
        DataLoader(
            crops,
            batch_size=min(config.batch_size, len(samples)),
            shuffle=True,
            drop_last=True,
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            pin_memory=pinned,
            generator=torch.Generator().manual_seed(config.seed),
        ),
        # Images of one split may differ in size, so each is a batch of its own.
        DataLoader(WholeImages(dataset.split("val")), num_workers=min(config.workers, 2), pin_memory=pinned),
    )


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice, on workers, loggers and its makers' other products, off the user's screen."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", module=r"lightning\.")  # its use of deprecated names of torch
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _sigint_restored() -> Iterator[None]:
    """Put back the handler of SIGINT, which Lightning leaves ignored after an interrupt."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # outside the main thread handlers cannot be set, and were not changed
            signal.signal(signal.SIGINT, handler)

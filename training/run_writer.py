"""Write a run's files into its folder at the end of each epoch; `training.run_folder` lists them."""

import contextlib
import csv
import dataclasses
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from fcnseg.errors import one_line
from fcnseg.files import replacing, write_bytes, write_text
from fcnseg.thumbnails import encode, paint_ids, shrink, tile
from training.curves import draw_curves
from training.metrics import Scores
from training.run import RECORD_KEY
from training.run_folder import BEST, CURVES, LAST, METRICS, SAMPLES
from training.samples import Sample, read_sample
from training.task import SegmentationTask

_WEIGHTS_KEYS = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", RECORD_KEY)
_METRICS = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
_SAMPLES_EVERY = 5
_SHOWN = 4
_LONGER_SIDE = 320


class RunWriter(Callback):
    """Writes checkpoints, metrics.csv, curves.png, and every few epochs the predictions for some images.

    Args:
        folder: The run's folder.
        samples: Validation images, four of which are shown.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        self.best: dict[str, float] = {}
        self._folder = folder
        self._samples = [samples[i] for i in dict.fromkeys(i * len(samples) // _SHOWN for i in range(_SHOWN))]
        self._rows: list[dict[str, float]] = []
        self._begun = time.perf_counter()

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions of the validated weights for some images."""
        if isinstance(pl_module, SegmentationTask) and self._is_shown(trainer):
            picture = tile([_panel(pl_module, sample) for sample in self._samples])
            write_bytes(self._folder / SAMPLES / f"epoch_{trainer.current_epoch + 1:04}.jpg", encode(picture, ".jpg"))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch: its row, the curves, last.ckpt, and best.ckpt if it is the best so far."""
        if not isinstance(pl_module, SegmentationTask) or pl_module.scores is None:
            return
        scores, epoch = pl_module.scores, trainer.current_epoch + 1
        metrics = {name: float(getattr(scores, name)) for name in _METRICS}
        names = [info.name for info in pl_module.record.label_map.classes]
        class_iou = dict(zip(names, scores.per_class_iou, strict=True))
        pl_module.record = dataclasses.replace(pl_module.record, epoch=epoch, metrics=metrics, class_iou=class_iou)
        seconds = round(time.perf_counter() - self._begun, 2)
        self._rows.append({"epoch": epoch, "loss": pl_module.running_loss.mean(), **metrics, "seconds": seconds})
        is_best = not self.best or metrics["mean_iou"] > self.best["mean_iou"]
        if is_best:
            self.best = metrics
        with self._explained(epoch):
            _log(trainer, pl_module, scores)
            self._keep(trainer, is_best=is_best)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {"best": self.best, "rows": self._rows}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the run ended."""
        self.best, self._rows = state_dict["best"], state_dict["rows"]
        self._begun -= self._rows[-1]["seconds"]

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a run that is interrupted before its first epoch is saved; later, the last epoch's checkpoint exists."""
        interrupted = isinstance(exception, KeyboardInterrupt) or trainer.received_sigterm
        if not interrupted or trainer.global_step == 0 or (self._folder / LAST).is_file():
            return
        if self._rows:  # the epoch is finished, and was being written
            self._keep(trainer, is_best=True)
        else:
            with replacing(self._folder / LAST) as temporary:
                trainer.save_checkpoint(temporary, weights_only=False)

    def _keep(self, trainer: Trainer, *, is_best: bool) -> None:
        """Write the epochs' rows and curves, and the checkpoints of the last one."""
        write_text(self._folder / METRICS, _to_csv(self._rows))
        draw_curves(self._rows, self._folder / CURVES)
        with replacing(self._folder / LAST) as temporary:
            trainer.save_checkpoint(temporary, weights_only=False)
            if is_best:  # before last.ckpt: a run that is killed in between repeats the epoch
                _keep_weights(temporary, self._folder / BEST)

    @contextlib.contextmanager
    def _explained(self, epoch: int) -> Iterator[None]:
        """Turn an error into one line that says that the epoch cannot be saved."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError if it cannot write a file
            reason = getattr(error, "strerror", None) or one_line(error, 150)
            raise OSError(
                f"epoch {epoch} cannot be kept in {self._folder} ({reason}); make room, and continue with --resume"
            ) from error

    def _is_shown(self, trainer: Trainer) -> bool:
        epoch = trainer.current_epoch + 1
        return epoch == 1 or epoch % _SAMPLES_EVERY == 0 or epoch == trainer.max_epochs


def _panel(task: SegmentationTask, sample: Sample) -> list[Any]:
    """Return image, truth and prediction as a panel."""
    image, mask = read_sample(sample)
    label_map = task.record.label_map
    class_map = task.predict(torch.from_numpy(image)[None])[0].cpu().numpy()
    return [
        shrink(image, _LONGER_SIDE),
        paint_ids(mask, label_map, _LONGER_SIDE),
        paint_ids(class_map, label_map, _LONGER_SIDE),
    ]


def _log(trainer: Trainer, task: SegmentationTask, scores: Scores) -> None:
    """Pass the scores to the loggers, such as TensorBoard."""
    names = [info.name for info in task.record.label_map.classes]
    values = {
        "loss/train": task.running_loss.mean(),
        "val/mean_iou": scores.mean_iou,
        "val/pixel_accuracy": scores.pixel_accuracy,
        "lr": max(float(group["lr"]) for group in trainer.optimizers[0].param_groups),
        **{f"iou/{name}": iou for name, iou in zip(names, scores.per_class_iou, strict=True) if iou is not None},
    }
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.current_epoch + 1)


def _keep_weights(checkpoint: Path, path: Path) -> None:
    """Copy a checkpoint without the state for resuming: optimiser, schedule, and weights before averaging."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    with replacing(path) as temporary:
        torch.save({key: content[key] for key in _WEIGHTS_KEYS}, temporary)


def _to_csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()

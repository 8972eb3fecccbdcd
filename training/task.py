"""The Lightning module: training step, validation step and optimiser."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from training.device import exact_products
from training.losses import SegmentationLoss
from training.metrics import Meter, Scores
from training.model import SegmentationModel
from training.optimisation import build_optimiser, rate_factor
from training.run import RECORD_KEY, RunRecord, record_as_plain
from training.running_loss import RunningLoss


class SegmentationTask(LightningModule):
    """Fits a model's pixel scores to masks.

    Args:
        model: The model, which is trained in place.
        record: The metadata of its checkpoints; replaced at the end of each epoch.
        class_weights: (K,) weight of each class's pixels in the loss; None weighs all alike.

    Attributes:
        model: The argument `model`.
        record: The metadata that a checkpoint written now would have.
        scores: The scores of the latest validation, or None before the first.
        running_loss: The training loss of the current epoch.
        scores_finite: Whether all scores of the latest validation are finite numbers, a bool on the device.
    """

    def __init__(self, model: SegmentationModel, record: RunRecord, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.model = model
        self.record = record
        self.scores: Scores | None = None
        self._loss = SegmentationLoss(record.config, ignore_value(record.label_map.ignore_id), class_weights)
        self.running_loss = RunningLoss()
        self.scores_finite = torch.tensor(data=True)
        self._meter: Meter | None = None
        self._pixel_scores: Callable[[Tensor], Tensor] = model.pixel_scores

    @override
    def train(self, mode: bool = True) -> "SegmentationTask":
        """Set the mode as for any module, but keep frozen statistics from being updated."""
        super().train(mode)
        if self.record.config.freeze_statistics:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch: images (N, 3, H, W) uint8, masks (N, H, W) int64."""
        images, masks = batch
        loss: Tensor = self._loss(self._pixel_scores(images.permute(0, 2, 3, 1)), masks)
        self.running_loss.update(loss.detach())
        return loss

    @override
    def on_fit_start(self) -> None:
        """Compile the net, if that was asked for."""
        if self.record.config.compile:
            self._pixel_scores = torch.compile(self.model.pixel_scores)

    @override
    def on_train_epoch_start(self) -> None:
        """Reset the epoch's mean loss."""
        self.running_loss.reset()

    @override
    def on_validation_start(self) -> None:
        """Start with an empty confusion matrix."""
        self.scores_finite = torch.tensor(data=True, device=self.device)
        self._meter = Meter(len(self.record.label_map), self.record.label_map.ignore_id, self.device)

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count a batch of one size: images (N, H, W, 3) uint8, masks (N, H, W) uint8."""
        images, masks = batch
        if self._meter is not None:
            self._meter.update(self.predict(images), masks)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return the class maps (N, H, W) int64 of images (N, H, W, 3) uint8.

        This is computed as in the exported graph, for which the scores must hold: in fp32, and with many classes by the
        arg-max at the cells.
        """
        images = images.to(self.device)
        with exact_products(), torch.autocast(self.device.type, enabled=False):
            if self.model.class_map_at == "cell":
                class_map, heatmap, _ = self.model(images)
            else:
                heatmap = self.model.heatmap(images)
                class_map = self.model.enlarge_scores(heatmap, (images.shape[1], images.shape[2])).argmax(dim=1)
            self.scores_finite = self.scores_finite & heatmap.isfinite().all()
            ids: Tensor = class_map.long()
            return ids

    @override
    def on_validation_end(self) -> None:
        """Store the scores."""
        if self._meter is not None:
            self.scores = self._meter.compute()

    @override
    def configure_optimizers(self) -> Any:
        """Return the configuration's optimiser and schedule."""
        config = self.record.config
        optimiser = build_optimiser(self.model, config)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimiser, lambda step: rate_factor(step, steps, config.warmup, config.schedule))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record, which is needed to rebuild the model."""
        checkpoint[RECORD_KEY] = record_as_plain(self.record)


def ignore_value(ignore_id: int | None) -> int:
    """Return the value of pixels without a label in int64 masks: the ignore id, or -1 if the data has none."""
    return -1 if ignore_id is None else ignore_id

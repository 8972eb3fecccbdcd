"""One training step, one validation step and the optimiser, as Lightning runs them."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import MeanMetric
from typing_extensions import override

from training.metrics import Meter, Scores
from training.model import SegmentationModel
from training.run import RECORD_KEY, RunRecord, record_as_plain


class SegmentationTask(LightningModule):
    """Fits a model's pixel scores to masks by cross-entropy.

    Args:
        model: What is trained, in place.
        record: What its checkpoints say; replaced as epochs end.

    Attributes:
        model: As given.
        record: What a checkpoint written now says beside the weights.
        scores: The latest validation's, or None before the first.
    """

    def __init__(self, model: SegmentationModel, record: RunRecord) -> None:
        super().__init__()
        self.model = model
        self.record = record
        self.scores: Scores | None = None
        self._loss = MeanMetric()
        self._meter: Meter | None = None

    def mean_loss(self) -> float:
        """Mean training loss of the epoch so far."""
        return float(self._loss.compute())

    @override
    def train(self, mode: bool = True) -> "SegmentationTask":
        """As for any module, but statistics that are to stay frozen are never updated."""
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
        scores = self.model.pixel_scores(images.permute(0, 2, 3, 1))  # (N, K, H, W)
        loss = cross_entropy(scores, masks, ignore_value(self.record.label_map.ignore_id))
        self._loss.update(loss.detach())
        return loss

    @override
    def on_train_epoch_start(self) -> None:
        """Begin the epoch's mean loss."""
        self._loss.reset()

    @override
    def on_validation_start(self) -> None:
        """Begin an empty confusion matrix."""
        self._meter = Meter(len(self.record.label_map), self.record.label_map.ignore_id, self.device)

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count a batch of one size: images (N, H, W, 3) uint8, masks (N, H, W) uint8."""
        images, masks = batch
        # The exported graph computes in fp32, and what is measured here is meant to hold for it.
        with torch.autocast(self.device.type, enabled=False):
            class_map = self.model.pixel_scores(images).argmax(dim=1)
        if self._meter is not None:
            self._meter.update(class_map, masks)

    @override
    def on_validation_end(self) -> None:
        """Keep the scores."""
        if self._meter is not None:
            self.scores = self._meter.compute()

    @override
    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up and a cosine; pretrained layers at a lower rate, no decay where it does harm."""
        config = self.record.config
        groups = _parameter_groups(self.model, config.lr, config.backbone_lr_factor, config.weight_decay)
        optimiser = torch.optim.AdamW(groups)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, steps, config.warmup))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilding the model takes."""
        checkpoint[RECORD_KEY] = record_as_plain(self.record)


def cross_entropy(scores: Tensor, masks: Tensor, ignored: int) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0 where there are none, instead of their 0 / 0.

    Args:
        scores: (N, K, H, W) float.
        masks: (N, H, W) int64 ids.
        ignored: The value of pixels without a label.
    """
    total = nn.functional.cross_entropy(scores.float(), masks, ignore_index=ignored, reduction="sum")
    return total / (masks != ignored).sum().clamp(min=1)


def ignore_value(ignore_id: int | None) -> int:
    """The value for pixels without a label in int64 masks: the ignore id, or -1 where the data has none."""
    return -1 if ignore_id is None else ignore_id


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """What the peak learning rate is multiplied by: a linear climb over the warm-up's share, then a cosine to 0."""
    climb = max(1, round(steps * warmup))
    if step < climb:
        return (step + 1) / climb
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - climb) / max(1, steps - climb))))


def _parameter_groups(
    model: SegmentationModel, lr: float, backbone_lr_factor: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Sort the parameters by learning rate (new or pretrained) and decay (weights, or biases and norm layers)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_is_new(name), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr if new else lr * backbone_lr_factor,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (new, decays), parameters in groups.items()
    ]


def _is_new(name: str) -> bool:
    return any(part.startswith("score") for part in name.split("."))

"""The training loss: cross-entropy over the labelled pixels, optionally with Dice and Lovász-softmax losses.

The Dice and Lovász-softmax losses are those of segmentation_models_pytorch.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from training.config import ClassWeights, Reduction, TrainConfig
from training.contents import Contents


class SegmentationLoss(nn.Module):
    """The loss of a batch of pixel scores.

    Args:
        config: The terms of the loss, and their weights.
        ignored: The value of pixels without a label.
        class_weights: (K,) weight of each class's pixels in the cross-entropy; None weighs all alike.
    """

    def __init__(self, config: TrainConfig, ignored: int, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self._ignored = ignored
        self._reduction, self._ohem = config.reduction, config.ohem
        self._class_weights: Tensor | None
        self.register_buffer("_class_weights", class_weights, persistent=False)
        self._dice_weight, self._lovasz_weight = config.dice, config.lovasz
        self._dice = _region_loss("DiceLoss", ignored) if config.dice else None
        self._lovasz = _region_loss("LovaszLoss", ignored) if config.lovasz else None

    def forward(self, scores: Tensor, masks: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            scores: (N, K, H, W) of any floating type.
            masks: (N, H, W) int64 ids.
        """
        scores = scores.float()
        loss = cross_entropy(
            scores, masks, self._ignored, weights=self._class_weights, reduction=self._reduction, hardest=self._ohem
        )
        if self._dice is not None:
            loss = loss + self._dice_weight * self._dice(scores, masks)
        # Without a label the Lovász loss is not a scalar. This check synchronises with the GPU, but so does that loss.
        if self._lovasz is not None and (masks != self._ignored).any():
            loss = loss + self._lovasz_weight * self._lovasz(scores, masks)
        return loss


def cross_entropy(
    scores: Tensor,
    masks: Tensor,
    ignored: int,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    hardest: float = 1.0,
) -> Tensor:
    """Compute the cross-entropy over the labelled pixels; 0 if there are none, instead of 0 / 0 for a mean.

    Args:
        scores: (N, K, H, W) float.
        masks: (N, H, W) int64 ids.
        ignored: The value of pixels without a label.
        weights: (K,) weight of each class's pixels; the mean is then a weighted mean.
        reduction: Whether to take the mean over the pixels or their sum.
        hardest: Share of the labelled pixels that count, those with the highest loss: online hard example mining.
    """
    losses = nn.functional.cross_entropy(scores, masks, weights, ignore_index=ignored, reduction="none")
    labelled = masks != ignored
    counts = labelled if weights is None else weights[masks.where(labelled, 0)] * labelled
    if hardest < 1:
        kept = (labelled.sum() * hardest).ceil().int().clamp(min=1)
        losses, places = losses.flatten().topk(int(kept))
        counts = counts.flatten()[places]
    total = losses.sum()
    if reduction == "sum":
        return total
    amount = counts.sum()
    return total / torch.where(amount > 0, amount, 1)


def balance_classes(contents: Contents, how: ClassWeights) -> Tensor | None:
    """Weigh classes by median frequency balancing (Eigen and Fergus, arXiv 1411.4734, section 6.3.2).

    A class's frequency is its share of the labelled pixels of the images in which it occurs; its weight is the median
    of all frequencies divided by its own. A class that never occurs gets weight 1, which has no effect.

    Args:
        contents: Statistics of the training masks.
        how: `median` for those weights, `sqrt-median` for their square roots, `none` for None.

    Returns:
        (K,) float32, or None.
    """
    if how == "none":
        return None
    pixels = torch.tensor(contents.class_pixels, dtype=torch.float64)
    extent = torch.tensor(contents.class_extent, dtype=torch.float64)
    occurs = pixels > 0
    frequency = pixels[occurs] / extent[occurs]
    weights = torch.ones(len(pixels), dtype=torch.float64)
    weights[occurs] = frequency.quantile(0.5) / frequency
    return (weights.sqrt() if how == "sqrt-median" else weights).float()


def _region_loss(name: Literal["DiceLoss", "LovaszLoss"], ignored: int) -> nn.Module:
    from segmentation_models_pytorch import losses  # noqa: PLC0415  # seconds, for few runs

    loss: nn.Module = getattr(losses, name)("multiclass", ignore_index=ignored)
    return loss

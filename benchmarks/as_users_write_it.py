"""The net between lines of PyTorch, as one writes them who has no fcnseg."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model import SegmentationModel


class AsUsersWriteIt(nn.Module):
    """What users of torchvision, segmentation_models_pytorch and FCNs write around the net.

    Zeros around the image make it as large as the module does, and scores are stretched to pixels by F.interpolate: as
    much arithmetic as the file has, and other masks, at borders above all.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.net = model.net
        self.geometry = model.geometry
        self.register_buffer("mean", torch.tensor(model.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8 to (N, H, W) uint8 classes and (N, K, H, W) scores."""
        x = images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        height, width = images.shape[1:3]
        padded_height, padded_width = self.geometry.padded(height, width)
        top, left = self.geometry.y.lead, self.geometry.x.lead
        around = (left, padded_width - width - left, top, padded_height - height - top)
        scores = self.net(F.pad((x - self.mean) / self.std, around))
        scores = F.interpolate(scores, size=(padded_height, padded_width), mode="bilinear", align_corners=False)
        scores = scores[:, :, top : top + height, left : left + width]
        return scores.argmax(1).to(torch.uint8), scores

"""Nets for benchmarks: random weights that tell classes apart, as a module and as a model file."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fcnseg.types import LabelMap
from training.export import export
from training.model import SegmentationModel, build_model
from training.precision import FilePrecision

CLEAR = 1e-3
"""How far apart a pixel's two best scores are, as a share of all scores' range, where rounding cannot swap them."""


def build_net(architecture: str, classes: int = 21) -> SegmentationModel:
    """An FCN-8s whose score layers, which begin at zero, are random too: its masks have several classes."""
    torch.manual_seed(0)
    model = build_model(architecture, "fcn8s", classes, pretrained=False).eval()
    for parameter in model.parameters():
        if parameter.dim() == 4 and not parameter.any():
            nn.init.kaiming_normal_(parameter)
    return model


def export_net(model: SegmentationModel, path: Path, precision: FilePrecision = "fp32") -> None:
    """Write its model file."""
    export(model, LabelMap.from_names([f"class {i}" for i in range(model.num_classes)]), path, precision=precision)


def clear_pixels(scores: Tensor) -> Tensor:
    """Where the best class is so by more than rounding: (N, H, W) bool of (N, K, H, W) scores."""
    best = scores.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]) > CLEAR * (scores.max() - scores.min())


def build(architecture: str, folder: Path) -> Path:
    """Export an FCN-8s of 21 classes with random weights."""
    path = folder / f"{architecture}.onnx"
    export_net(build_net(architecture), path)
    return path

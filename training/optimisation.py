"""The optimiser of a run, its parameter groups, and its learning-rate schedule."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from training.config import Schedule, TrainConfig

_POLY_POWER = 0.9


def build_optimiser(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Build the optimiser of a model, with the schedule's peak learning rates."""
    groups = _parameter_groups(model, config)
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return torch.optim.AdamW(groups)


def rate_factor(step: int, steps: int, warmup: float, schedule: Schedule = "cosine") -> float:
    """Return the factor on the peak learning rate: a linear warm-up, then the schedule.

    Args:
        step: The step, from 0.
        steps: Number of steps of the run.
        warmup: Share of the steps for the warm-up; 0 starts at the peak.
        schedule: A cosine to 0, (1 - t)^0.9 to 0, or constant at the peak.
    """
    climb = max(1, round(steps * warmup))
    if step < climb:
        return (step + 1) / climb
    progress = min(1.0, (step - climb) / max(1, steps - climb))
    if schedule == "constant":
        return 1.0
    if schedule == "poly":
        return float((1 - progress) ** _POLY_POWER)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Group the parameters by learning rate (new or pretrained, bias or not) and weight decay (only for weights)."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr = config.lr * (1 if _is_new(name) else config.backbone_lr_factor)
            lr *= config.bias_lr_factor if name.endswith("bias") else 1
            groups.setdefault((lr, config.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": found, "lr": lr, "weight_decay": decay} for (lr, decay), found in groups.items()]


def _is_new(name: str) -> bool:
    return not name.startswith("net.trunk.")

"""The two training recipes: the default options of a run.

`modern` stands for the defaults of `TrainConfig`. `paper` is the recipe of Long, Shelhamer and Darrell (arXiv
1411.4038; the learning rates are from its code release and arXiv 1605.06211): SGD on single whole images with momentum
0.99, the loss summed over the pixels, a constant learning rate, biases at twice that rate and without weight decay. The
learning rate for a summed loss depends on the image size, so the paper's rate is converted if a mean, another batch
size or a crop is asked for (`equivalent_sgd`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.config import RecipeName, Reduction, TrainConfig, Variant, from_plain

LARGEST_CROP = 320
_CROP_STEP = 32
_UNTRAINED_LR_FACTOR = 0.2
_PAPER_PIXELS = 500 * 375
"""Pixels of a usual PASCAL VOC image, to which the paper's learning rates for a summed loss belong."""
_STAGED_RATES: dict[Variant, float] = {"fcn32s": 1e-10, "fcn16s": 1e-12, "fcn8s": 1e-14}
_AT_ONCE_RATE = 1e-10
_AT_ONCE_SCALE = 0.01


@dataclass(frozen=True)
class Sgd:
    """Parameters of SGD: v <- momentum * v + gradient + weight_decay * w; w <- w - lr * v."""

    lr: float
    momentum: float
    weight_decay: float


def resolve(given: Mapping[str, Any], image_size: tuple[int, int]) -> TrainConfig:
    """Complete the options of a run with the defaults of its recipe.

    Args:
        given: Options by name; None means not given, except for `crop`, `weights` and other options for which None is
            a value.
        image_size: Usual (height, width) of the training images.

    Raises:
        UsageError: An option has an invalid value, or two options contradict each other.
    """
    recipe: RecipeName = given.get("recipe", "modern")
    defaults = _paper(given, image_size) if recipe == "paper" else {"crop": _default_crop(image_size)}
    if not given.get("pretrained", True) and given.get("start") is None:
        # Random weights have no statistics to keep, and do not need a lower learning rate.
        defaults = {"backbone_lr_factor": _UNTRAINED_LR_FACTOR, "freeze_statistics": False, **defaults}
    return from_plain({**defaults, **given})


def equivalent_sgd(single: Sgd, batch_size: int, reduction: Reduction, pixels: int) -> Sgd:
    """Convert SGD parameters for single images and a summed loss to batches, or to a mean loss.

    A batch of k images replaces k steps: their gradients add up, and momentum and weight decay act k times
    (arXiv 1605.06211, section 4.3: p^(1/k)). The gradient of a mean over P pixels is that of the sum divided by P, so
    the learning rate is multiplied by P. The weight decay's term is not part of the mean, so the decay is divided by P:
    the steps are the same.

    Args:
        single: The parameters for batches of one image and a summed loss.
        batch_size: Number of images in each step, k.
        reduction: Whether the loss is a sum or a mean.
        pixels: Number of labelled pixels of an image.
    """
    decay = single.weight_decay * batch_size
    momentum = single.momentum**batch_size
    if reduction == "sum":
        return Sgd(single.lr, momentum, decay)
    total = batch_size * pixels
    return Sgd(single.lr * total, momentum, decay / total)


def _paper(given: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    variant: Variant = given.get("variant", "fcn8s")
    at_once = given.get("start") is None and variant != "fcn32s"
    batch_size, reduction = given.get("batch_size", 1), given.get("reduction", "sum")
    height, width = given.get("crop") or image_size
    rate = _AT_ONCE_RATE if at_once else _STAGED_RATES[variant]
    # A sum over images of another size than the paper's has another number of terms.
    single = Sgd(rate * _PAPER_PIXELS / (height * width), 0.99, 5e-4 * height * width / _PAPER_PIXELS)
    sgd = equivalent_sgd(single, batch_size, reduction, height * width)
    return {
        "skip_scale": _AT_ONCE_SCALE if at_once else 1.0,
        "batch_size": batch_size,
        "crop": None,
        "scale_jitter": (1.0, 1.0),
        "flip": False,
        "colour_jitter": 0.0,
        "optimiser": "sgd",
        "lr": sgd.lr,
        "backbone_lr_factor": 1.0,
        "bias_lr_factor": 2.0,
        "momentum": sgd.momentum,
        "weight_decay": sgd.weight_decay,
        "schedule": "constant",
        "warmup": 0.0,
        "reduction": reduction,
        "class_weights": "none",
        "dice": 0.0,
        "ema": 0.0,
        "precision": "fp32",
    }


def _default_crop(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return a square crop of the images' longer side, rounded to a size that no backbone has to pad."""
    side = max(_CROP_STEP, min(LARGEST_CROP, -(-max(image_size) // _CROP_STEP) * _CROP_STEP))
    return side, side

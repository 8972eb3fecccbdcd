"""The two recipes: what options a run has where nothing else was asked for.

`modern` is the defaults of `TrainConfig`. `paper` is that of Long, Shelhamer and Darrell (arXiv 1411.4038; its release
and arXiv 1605.06211 give the rates): SGD on single whole images with momentum 0.99, the loss summed over the pixels, a
fixed rate, biases at twice the rate and without decay. A sum's rate means nothing for another image size, so the
paper's is translated where a mean, another batch or a crop is asked for (`equivalent_sgd`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.config import RecipeName, Reduction, TrainConfig, Variant, from_plain

LARGEST_CROP = 320
_CROP_STEP = 32
_UNTRAINED_LR_FACTOR = 0.2
_PAPER_PIXELS = 500 * 375
"""Of PASCAL VOC's usual image, which the paper's rates for a sum go with."""
_STAGED_RATES: dict[Variant, float] = {"fcn32s": 1e-10, "fcn16s": 1e-12, "fcn8s": 1e-14}
_AT_ONCE_RATE = 1e-10
_AT_ONCE_SCALE = 0.01


@dataclass(frozen=True)
class Sgd:
    """What stochastic gradient descent takes: v <- momentum * v + gradient + weight_decay * w; w <- w - lr * v."""

    lr: float
    momentum: float
    weight_decay: float


def resolve(given: Mapping[str, Any], image_size: tuple[int, int]) -> TrainConfig:
    """Fill up the options of a run with those of its recipe.

    Args:
        given: Options by name; None stands for one that was not given, but for `crop`, `weights` and the others that
            have None for a value.
        image_size: Usual (height, width) of the training images.

    Raises:
        UsageError: An option cannot have its value, or two contradict each other.
    """
    recipe: RecipeName = given.get("recipe", "modern")
    defaults = _paper(given, image_size) if recipe == "paper" else {"crop": _default_crop(image_size)}
    if not given.get("pretrained", True) and given.get("start") is None:
        # There are no statistics to keep, and nothing to be careful with.
        defaults = {"backbone_lr_factor": _UNTRAINED_LR_FACTOR, "freeze_statistics": False, **defaults}
    return from_plain({**defaults, **given})


def equivalent_sgd(single: Sgd, batch_size: int, reduction: Reduction, pixels: int) -> Sgd:
    """Translate SGD on single images and a sum over their pixels to batches, and to a mean.

    A batch of k images takes the place of k steps: their gradients add up, and momentum and decay act k times over
    (arXiv 1605.06211, section 4.3: p^(1/k)). A mean over P pixels is the sum's gradient divided by P, so the rate is
    multiplied by P and the decay, which is not divided, divided by P: the steps are the same.

    Args:
        single: For batches of one and the sum.
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
    # A sum over other images than the paper's has another number of terms.
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
    """A square of the images' longer side, in steps that no backbone has to pad."""
    side = max(_CROP_STEP, min(LARGEST_CROP, -(-max(image_size) // _CROP_STEP) * _CROP_STEP))
    return side, side

"""What a training run was asked to do, as it is kept in the run's folder and in its checkpoints."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import yaml

from fcnseg.errors import UsageError
from fcnseg.files import write_text
from fcnseg.types import Rgb

Variant: TypeAlias = Literal["fcn32s", "fcn16s", "fcn8s"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        data: The data folder.
        backbone: torchvision or timm name of the classifier.
        variant: The finest map that scores are fused at: stride 32, 16 or 8.
        weights: File of the classifier's weights; None takes those its zoo publishes.
        mean: Channel means of the weights' normalisation, of values in 0..1; None takes the known ones.
        std: Channel deviations, as `mean`.
        epochs: Passes over the training split.
        batch_size: Images a step.
        crop: Height and width in pixels of the training crops.
        scale_jitter: Range of the factor by which an image is resized before it is cropped.
        lr: Peak learning rate of the new layers.
        backbone_lr_factor: What it is multiplied by for the pretrained layers.
        weight_decay: Of AdamW, on convolution and linear weights; biases and normalisation layers have none.
        warmup: Share of the steps over which the rate climbs to its peak, before it falls to 0 as a cosine.
        freeze_statistics: Whether BatchNorm layers keep the mean and variance that the classifier was trained with.
        seed: Of everything random.
        workers: Processes that prepare batches; 0 prepares them in the training process.
        device: Where to train; `auto` takes CUDA where there is a device.
        precision: Of the training steps; validation runs in fp32.
    """

    data: str
    backbone: str
    variant: Variant = "fcn8s"
    weights: str | None = None
    mean: Rgb | None = None
    std: Rgb | None = None
    epochs: int = 20
    batch_size: int = 8
    crop: int = 320
    scale_jitter: tuple[float, float] = (0.75, 1.5)
    lr: float = 1e-2
    backbone_lr_factor: float = 0.07
    weight_decay: float = 1e-2
    warmup: float = 0.1
    freeze_statistics: bool = True
    seed: int = 0
    workers: int = 0
    device: Device = "auto"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.crop < 32:
            raise UsageError(f"crop is {self.crop}; it must be at least 32 pixels")
        if not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise UsageError(f"scale_jitter is {self.scale_jitter}; it must be two factors above 0, the least first")
        if not self.lr > 0:
            raise UsageError(f"lr is {self.lr}; it must be above 0")
        if self.workers < 0:
            raise UsageError(f"workers is {self.workers}; it must be at least 0")
        if (self.mean is None) != (self.std is None):
            raise UsageError("mean and std belong together; give both or neither")


def write_config(path: Path, config: TrainConfig) -> None:
    """Write a configuration as YAML."""
    write_text(path, yaml.safe_dump(as_plain(config), sort_keys=False))


def read_config(path: Path) -> TrainConfig:
    """Read what `write_config` wrote.

    Raises:
        UsageError: It is not that, or of another version.
    """
    try:
        return from_plain(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no configuration of this version's 'fcnseg train' ({error})") from error


def as_plain(config: TrainConfig) -> dict[str, object]:
    """Return a configuration as values that YAML and a checkpoint hold without classes of ours."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def from_plain(values: dict[str, object]) -> TrainConfig:
    """Rebuild a configuration from what `as_plain` made of it.

    Raises:
        TypeError: The values are of another version's configuration.
    """
    return TrainConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})  # type: ignore[arg-type]

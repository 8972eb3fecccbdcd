"""The configuration of a training run, as it is stored in the run's folder and in its checkpoints."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fcnseg.errors import UsageError, one_line
from fcnseg.files import write_text
from fcnseg.words import closest

Variant: TypeAlias = Literal["fcn32s", "fcn16s", "fcn8s"]
TailChoice: TypeAlias = Literal["auto", "fc", "gap"]
Upsampling: TypeAlias = Literal["bilinear", "learned"]
RecipeName: TypeAlias = Literal["modern", "paper"]
Optimiser: TypeAlias = Literal["adamw", "sgd"]
Schedule: TypeAlias = Literal["cosine", "poly", "constant"]
Reduction: TypeAlias = Literal["mean", "sum"]
ClassWeights: TypeAlias = Literal["none", "median", "sqrt-median"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]

LARGEST_SEED = 2**32 - 1
"""The largest seed that numpy's generator accepts; Lightning replaces a larger one by 0."""

_Count: TypeAlias = Annotated[int, Field(ge=1)]
_Pixels: TypeAlias = Annotated[int, Field(ge=32, le=8192)]
_Factor: TypeAlias = Annotated[float, Field(ge=1 / 16, le=16)]
_Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
_NotNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
_Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TrainConfig:
    """The options of a training run. The defaults are the modern recipe; `training.recipes` has the paper's recipe.

    Attributes:
        data: The data folder.
        backbone: torchvision or timm name of the classifier, or FILE.py:NAME.
        variant: The finest feature map at which scores are fused: stride 32, 16 or 8.
        tail: What the coarsest scores are computed from: `fc` the classifier's fully connected layers as convolutions,
            `gap` its last feature map, `auto` the input of its last layer.
        upsampling: How coarse scores are upsampled to the next finer map: `bilinear`, or `learned` transposed
            convolutions that are initialised to bilinear. The upsampling to pixels is always bilinear.
        skip_scale: Factor for the first skip's features before they are scored; the second skip's factor is its square
            (arXiv 1605.06211, section 4.3, trains all skips at once with 0.01).
        start: A run folder or checkpoint of a coarser variant from whose weights training starts; None starts from the
            classifier.
        pretrained: Whether the classifier is pretrained; False draws a zoo's weights at random. A custom net makes its
            own weights in either case; False states that they are random.
        weights: File of the classifier's weights; None takes the published weights of its zoo.
        mean: Channel means of the weights' normalisation, of values in 0..1; None takes the known ones.
        std: Standard deviations of the channels, given as `mean` is.
        input_size: Native (height, width) that the classifier was made for; None takes the zoo's.
        recipe: The recipe that the defaults came from; only for information.
        epochs: Passes over the training split.
        batch_size: Number of images in each step.
        crop: (height, width) in pixels of the training crops; None trains on whole images.
        scale_jitter: Range of the factor by which an image is resized before it is cropped.
        flip: Whether half of the images are mirrored, left to right.
        colour_jitter: Largest relative change of brightness, contrast and saturation.
        optimiser: `adamw` or `sgd`.
        lr: Peak learning rate of the new layers.
        backbone_lr_factor: Factor on `lr` for the pretrained layers.
        bias_lr_factor: Factor on the learning rate of biases.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of convolution and linear weights; biases and normalisation layers have none.
        schedule: How the learning rate falls from its peak: `cosine` or `poly` (power 0.9) to 0, or `constant`.
        warmup: Share of the steps over which the learning rate rises to its peak.
        reduction: Whether the cross-entropy is the `mean` over the labelled pixels, or their `sum`.
        class_weights: Weight of a class's pixels in the cross-entropy: by median frequency balancing
            (arXiv 1411.4734), the square root of that, or none.
        ohem: Online hard example mining: share of the labelled pixels, those with the highest loss, that the
            cross-entropy counts.
        dice: Weight of the Dice loss, which is added to the cross-entropy.
        lovasz: Weight of the Lovász-softmax loss (arXiv 1705.08790), which is added to the cross-entropy.
        ema: Decay of the exponential moving average of the weights, which is validated and saved; with 0 the weights
            themselves are.
        freeze_statistics: Whether BatchNorm layers keep the mean and variance that the classifier was trained with.
        seed: Seed of all random generators.
        workers: Processes that prepare batches; 0 prepares them in the training process, and makes resuming exact; None
            takes 0 on the CPU, whose cores are busy, and one per core, at most 8, on CUDA.
        device: Where to train; `auto` takes CUDA if there is a device.
        precision: Precision of the training steps: `auto` takes mixed precision with bf16 on CUDA devices that have it,
            with fp16 on older ones, and fp32 on the CPU; validation runs in fp32, never TF32.
        compile: Whether to use torch.compile for the training step: slower to start, then faster.
    """

    data: str
    backbone: str
    variant: Variant = "fcn8s"
    tail: TailChoice = "auto"
    upsampling: Upsampling = "bilinear"
    skip_scale: _Positive = 1.0
    start: str | None = None
    pretrained: bool = True
    weights: str | None = None
    mean: tuple[_Finite, _Finite, _Finite] | None = None
    std: tuple[_Positive, _Positive, _Positive] | None = None
    input_size: tuple[_Count, _Count] | None = None
    recipe: RecipeName = "modern"
    epochs: _Count = 20
    batch_size: _Count = 8
    crop: tuple[_Pixels, _Pixels] | None = (320, 320)
    scale_jitter: tuple[_Factor, _Factor] = (0.75, 1.5)
    flip: bool = True
    colour_jitter: _Share = 0.25
    optimiser: Optimiser = "adamw"
    lr: _Positive = 1e-2
    backbone_lr_factor: _NotNegative = 0.07
    bias_lr_factor: _NotNegative = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: _NotNegative = 1e-2
    schedule: Schedule = "cosine"
    warmup: _Share = 0.1
    reduction: Reduction = "mean"
    class_weights: ClassWeights = "sqrt-median"
    ohem: Annotated[float, Field(gt=0, le=1)] = 1.0
    dice: _NotNegative = 0.5
    lovasz: _NotNegative = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    freeze_statistics: bool = True
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    workers: Annotated[int, Field(ge=0)] | None = None
    device: Device = "auto"
    precision: Precision = "auto"
    compile: bool = False

    @property
    def seen(self) -> str:
        """Describe a training step's input: whole images, or crops of a size (height x width)."""
        return "whole images" if self.crop is None else "crops of {}x{} pixels".format(*self.crop)

    def __post_init__(self) -> None:
        if self.scale_jitter[0] > self.scale_jitter[1]:
            raise UsageError(f"scale_jitter is {self.scale_jitter}; it must be two factors above 0, the least first")
        if (self.mean is None) != (self.std is None):
            raise UsageError("mean and std belong together; give both or neither")
        if not self.pretrained and self.weights is not None:
            raise UsageError("weights are given for a classifier that is not to be pretrained; leave one of them out")
        if self.reduction == "sum" and (self.dice or self.lovasz):
            raise UsageError(
                "a cross-entropy summed over the pixels would drown the Dice and Lovász losses; take reduction mean, or"
                " 0 for both"
            )


_ADAPTER = TypeAdapter(TrainConfig)
OPTIONS = tuple(TrainConfig.__dataclass_fields__)
"""The names of all options."""


def write_config(path: Path, config: TrainConfig) -> None:
    """Write a configuration as YAML."""
    import yaml  # noqa: PLC0415  # comes with the train extra, without which 'fcnseg train --help' works

    write_text(path, yaml.safe_dump(as_plain(config), sort_keys=False))


def read_config(path: Path) -> TrainConfig:
    """Read a configuration file that `write_config` wrote.

    Raises:
        UsageError: The file is not such a configuration, or is one of another version.
    """
    return from_plain(read_values(path), str(path))


def read_values(path: Path) -> dict[str, Any]:
    """Read a YAML file of options, all of them or some.

    Raises:
        UsageError: The file cannot be read, is no YAML mapping, or holds an unknown option.
    """
    import yaml  # noqa: PLC0415

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = one_line(error)
        raise UsageError(f"{path} cannot be read as a configuration ({reason}); name a run's config.yaml") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no configuration; write 'option: value' lines, as in a run's config.yaml")
    for name in values:
        if name not in OPTIONS:
            raise UsageError(f"{path}: unknown option {name!r}; {closest(str(name), OPTIONS)}")
    return values


def as_plain(config: TrainConfig) -> dict[str, Any]:
    """Convert a configuration to plain values for YAML and checkpoints, without classes of this package."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def from_plain(values: dict[str, Any], source: str = "the configuration") -> TrainConfig:
    """Rebuild a configuration from the result of `as_plain`.

    Args:
        values: Options by name; omitted ones get their defaults.
        source: Where the values come from, for the message.

    Raises:
        UsageError: An option is unknown, missing or has an invalid value; the message names the first.
    """
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "the document"
        value = f" is {values[name]!r}" if name in values else ""
        raise UsageError(f"{source}: {name}{value}: {first['msg']}; correct it") from error

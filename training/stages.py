"""What a run starts from: its classifier, or the run of a coarser variant (arXiv 1411.4038, section 4.2).

A new skip's score layer is zero, so that the finer net starts by scoring as the coarser one does.
"""

from pathlib import Path

import torch

from fcnseg.errors import UsageError
from fcnseg.types import LabelMap
from training.config import TrainConfig
from training.model import SegmentationModel, build_model
from training.net_file import is_net_file
from training.run import open_run

_STRIDES = ("fcn32s", "fcn16s", "fcn8s")
_NEW = ("net.scores.", "net.upscores.")


def build_for(config: TrainConfig, label_map: LabelMap) -> SegmentationModel:
    """Build the model of a configuration, with the weights that it asks to start from.

    Raises:
        ArchitectureError, WeightsError, UsageError, ModelFileError: As for `build_model` and `start_from`.
    """
    if is_net_file(config.backbone):
        if config.mean is None:
            raise UsageError(
                f"the normalisation of {config.backbone} is not known; give the --mean and --std of its training"
            )
        if not config.pretrained:
            raise UsageError(f"{config.backbone} decides itself what weights it begins with; take --no-pretrained out")
    torch.manual_seed(config.seed)
    model = build_model(
        config.backbone,
        config.variant,
        len(label_map),
        tail=config.tail,
        upsampling=config.upsampling,
        skip_scale=config.skip_scale,
        weights=None if config.weights is None else Path(config.weights),
        mean=config.mean,
        std=config.std,
        input_size=config.input_size,
        pretrained=config.pretrained,
    )
    if config.start is not None:
        start_from(model, config, label_map, Path(config.start))
    return model


def start_from(model: SegmentationModel, config: TrainConfig, label_map: LabelMap, path: Path) -> None:
    """Give a model the weights of a run of a coarser variant, or of its own.

    Args:
        model: Built for `config`; changed in place.
        config: The run that is to be trained.
        label_map: Its classes.
        path: The earlier run's folder or checkpoint.

    Raises:
        UsageError: There is no checkpoint, or its run is not one that this one can follow.
        ModelFileError: The file is not a checkpoint of `fcnseg train`.
    """
    run = open_run(path)
    earlier = run.record
    for name in ("backbone", "tail", "upsampling"):
        begun, asked = getattr(earlier.config, name), getattr(config, name)
        if begun != asked:
            raise UsageError(f"the run in {path} has {name} {begun}, and {asked} was asked for; give both the same")
    if earlier.label_map != label_map:
        raise UsageError(f"the run in {path} was trained for other classes; start from a run on the same classes")
    if _STRIDES.index(earlier.config.variant) > _STRIDES.index(config.variant):
        raise UsageError(
            f"{config.variant} cannot start from {earlier.config.variant}, which is finer; train the coarser one first"
        )
    unfit = model.load_state_dict(run.model.state_dict(), strict=False)
    strange = [*unfit.unexpected_keys, *(key for key in unfit.missing_keys if not key.startswith(_NEW))]
    if strange:
        raise RuntimeError(f"{config.variant} and {earlier.config.variant} share no trunk: {strange[:3]}")

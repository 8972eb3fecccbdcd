"""Initialise a run from its classifier, or from a run of a coarser variant (arXiv 1411.4038, section 4.2).

A new skip's score layer is initialised to zero, so that at first the finer net gives the scores of the coarser one.
"""

from pathlib import Path

import torch

from fcnseg.errors import UsageError
from fcnseg.types import LabelMap
from training.config import TrainConfig
from training.model import SegmentationModel, build_model
from training.net_file import is_net_file
from training.run import Checkpoint, RunRecord, read_checkpoint

_STRIDES = ("fcn32s", "fcn16s", "fcn8s")
_NEW = ("net.scores.", "net.upscores.")


def build_for(config: TrainConfig, label_map: LabelMap) -> SegmentationModel:
    """Build the model of a configuration, with the weights from which training starts.

    Raises:
        ArchitectureError, WeightsError, UsageError, ModelFileError: The net cannot be built, its weights cannot be
            obtained, or this run cannot start from the run in `start`.
    """
    if is_net_file(config.backbone) and config.start is None and config.mean is None:
        raise UsageError(
            f"the normalisation of {config.backbone} is not known; give the --mean and --std of its training"
        )
    if config.start is not None and config.weights is not None:
        raise UsageError("--start and --weights both say what to begin with; leave one out")
    torch.manual_seed(config.seed)
    if config.start is not None:
        start = _read_start(Path(config.start), config, label_map)
        model = _build(config, label_map, start.record)
        _take_over(model, start)
        return model
    return _build(config, label_map, None)


def _build(config: TrainConfig, label_map: LabelMap, earlier: RunRecord | None) -> SegmentationModel:
    """Build a model; if an earlier run is given, use its normalisation unless the configuration has another one."""
    return build_model(
        config.backbone,
        config.variant,
        len(label_map),
        tail=config.tail,
        upsampling=config.upsampling,
        skip_scale=config.skip_scale,
        weights=None if config.weights is None or earlier is not None else Path(config.weights),
        mean=earlier.mean if earlier is not None and config.mean is None else config.mean,
        std=earlier.std if earlier is not None and config.std is None else config.std,
        input_size=config.input_size,
        classifier_classes=None if earlier is None else earlier.classifier_classes,
        pretrained=config.pretrained and earlier is None,
    )


def _read_start(path: Path, config: TrainConfig, label_map: LabelMap) -> Checkpoint:
    """Read the run to start from; it must have the same net and a coarser or the same variant."""
    checkpoint = read_checkpoint(path)
    earlier = checkpoint.record
    for name in ("backbone", "tail", "upsampling"):
        begun, asked = getattr(earlier.config, name), getattr(config, name)
        if begun != asked:
            raise UsageError(f"the run in {path} has {name} {begun}, and {asked} was asked for; give both the same")
    if earlier.config.input_size != config.input_size:
        raise UsageError(
            f"the run in {path} has input size {_size(earlier.config.input_size)}, and {_size(config.input_size)} was"
            " asked for; give both the same"
        )
    if earlier.label_map != label_map:
        raise UsageError(f"the run in {path} was trained for other classes; start from a run on the same classes")
    if _STRIDES.index(earlier.config.variant) > _STRIDES.index(config.variant):
        raise UsageError(
            f"{config.variant} cannot start from {earlier.config.variant}, which is finer; train the coarser one first"
        )
    if earlier.config.variant != "fcn32s" and earlier.config.skip_scale != config.skip_scale:
        raise UsageError(
            f"the skips of the run in {path} see features scaled by {earlier.config.skip_scale:g}, and"
            f" {config.skip_scale:g} was asked for; give both the same --skip-scale"
        )
    return checkpoint


def _size(size: tuple[int, int] | None) -> str:
    return "the zoo's" if size is None else f"{size[0]}x{size[1]}"


def _take_over(model: SegmentationModel, start: Checkpoint) -> None:
    """Load the weights of an earlier run into a model; new layers, which that run lacks, stay as they were built."""
    unfit = model.load_state_dict(start.weights, strict=False)
    strange = [*unfit.unexpected_keys, *(key for key in unfit.missing_keys if not key.startswith(_NEW))]
    if strange:
        raise RuntimeError(f"{model.variant} and {start.record.config.variant} share no trunk: {strange[:3]}")

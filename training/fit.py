"""The training loop: data in, run folder out."""

import contextlib
import json
import logging
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from typing_extensions import override

from fcnseg.allocator import keep_freed_memory
from fcnseg.files import remove_halves, write_text
from training.augment import TrainingCrops, WholeImages
from training.averaging import MovingAverage
from training.config import Precision, TrainConfig, write_config
from training.data import Dataset
from training.device import exact_products, resolve_device, resolve_precision, resolve_workers
from training.divergence import DivergenceWatch
from training.environment import describe_environment
from training.failures import explain_failure
from training.model import SegmentationModel
from training.progress import TrainingProgress
from training.run import RunRecord
from training.run_folder import CONFIG, ENVIRONMENT, LAST, SAMPLES, TENSORBOARD
from training.run_writer import RunWriter
from training.task import SegmentationTask, ignore_value

_TERMINATED = 128 + signal.SIGTERM
_PRECISIONS: dict[Precision, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def fit(
    model: SegmentationModel,
    dataset: Dataset,
    data_fingerprint: str,
    config: TrainConfig,
    folder: Path,
    console: Console,
    *,
    class_weights: Tensor | None = None,
    after_epoch: int | None = None,
) -> dict[str, float]:
    """Train a model and write its checkpoints into a run folder.

    In every epoch the random state is set from the seed and the epoch's number, so that a resumed run ends with the
    same weights as an uninterrupted one (with `workers` 0, on the same device).

    Args:
        model: The model, which is trained in place.
        dataset: Has the splits `train` and `val`, checked already.
        data_fingerprint: The fingerprint of those splits, for the checkpoints.
        config: The run's options.
        folder: The run's folder, without an earlier run (see `run_folder.prepare_folder`) unless it is resumed.
        console: Where progress is shown.
        class_weights: (K,) weight of each class's pixels in the loss; None weighs all classes equally.
        after_epoch: The last finished epoch in the folder, to continue after it; None begins a new run.

    Returns:
        The best epoch's `mean_iou` and `pixel_accuracy`.

    Raises:
        DeviceError: The requested device does not exist, or cannot train in the requested precision.
        UsageError: The training diverges (a loss is not finite); or memory does not suffice for a step, a validation
            image or the workers; or BatchNorm gets too few values in a step. Earlier epochs are kept.
        DatasetError: An image or mask can no longer be read.
        OSError: An epoch cannot be saved, for example on a full disk. Earlier epochs are kept.
        KeyboardInterrupt: The run was interrupted; the last checkpoint is that of the last finished epoch, or holds the
            current weights if no epoch was finished.
        SystemExit: The same, by SIGTERM.
    """
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    images = {split: len(dataset.split(split)) for split in ("train", "val")}
    record = RunRecord(
        config, dataset.label_map, model.mean, model.std, data_fingerprint, model.classifier_classes, images=images
    )
    for place in (folder, folder / SAMPLES):
        remove_halves(place)  # of a run that was killed while it wrote
    environment = describe_environment(device)
    if after_epoch is not None:
        begun = json.loads((folder / ENVIRONMENT).read_text("utf-8"))
        later = {"after_epoch": after_epoch, **environment}
        environment = {**begun, "resumed": [*begun.get("resumed", []), later]}
    else:
        environment["data_fingerprint"] = data_fingerprint
    write_text(folder / ENVIRONMENT, json.dumps(environment, indent=1) + "\n")  # the folder is a run's from here on
    write_config(folder / CONFIG, config)
    # Workers draw from their initial seed, which after a resume must not be that of the first epoch again.
    drawn_from = config.seed if after_epoch is None else epoch_seed(config.seed, after_epoch)
    writer, order = RunWriter(folder, dataset.split("val")), torch.Generator().manual_seed(drawn_from)
    averages = [MovingAverage(config.ema)] if config.ema else []
    if device == "cpu":
        keep_freed_memory()
    with _quiet_lightning(), _sigint_restored():
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=_PRECISIONS[precision],
            max_epochs=config.epochs,
            callbacks=[
                _EpochSeeds(config.seed, order),
                DivergenceWatch(console),
                writer,
                *averages,
                TrainingProgress(console),
            ],
            logger=TensorBoardLogger(folder, name=TENSORBOARD, version="", default_hp_metric=False),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        seed_everything(config.seed, verbose=False)
        train_loader, val_loader = _loaders(dataset, config, order, drawn_from)
        task = SegmentationTask(model, record, class_weights)
        task.train()  # Lightning leaves modules in the mode they are in, and a built model is in evaluation mode
        try:
            checkpoint = None if after_epoch is None else folder / LAST
            with exact_products() if precision == "fp32" else contextlib.nullcontext():
                trainer.fit(task, train_loader, val_loader, ckpt_path=checkpoint, weights_only=True)
        except SIGTERMException:
            raise SystemExit(_TERMINATED) from None
        except Exception as error:
            # A SIGTERM to all processes of a job ends the workers first, which PyTorch reports as an error.
            if trainer.received_sigterm and isinstance(error, RuntimeError):
                raise SystemExit(_TERMINATED) from None
            if told := explain_failure(error, config, training=task.training):
                raise told from error
            raise
        except SystemExit:
            # Lightning turns an interrupt into an exit.
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
    return writer.best


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the random seed of an epoch, numbered from 0, in a run of that seed."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


class _EpochSeeds(Callback):
    """Seeds every epoch from the run's seed and the epoch's number alone.

    This does not reach the workers that load data: they have their own seeds, and the order was drawn before the epoch.

    Args:
        seed: The run's seed.
        order: Draws the order of the samples.
    """

    def __init__(self, seed: int, order: torch.Generator) -> None:
        self._seed = seed
        self._order = order

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed augmentation, dropout and the order of the samples."""
        seed = epoch_seed(self._seed, trainer.current_epoch)
        self._order.manual_seed(seed_everything(seed, verbose=False))


def _loaders(
    dataset: Dataset, config: TrainConfig, order: torch.Generator, seed: int
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    samples = dataset.split("train")
    crops = TrainingCrops(
        samples,
        ignore_value(dataset.label_map.ignore_id),
        crop=config.crop,
        scale_jitter=config.scale_jitter,
        flip=config.flip,
        colour_jitter=config.colour_jitter,
    )
    device = resolve_device(config.device)
    workers, pinned = resolve_workers(config.workers, device), device == "cuda"
    return (
        DataLoader(
            crops,
            batch_size=min(config.batch_size, len(samples)),
            sampler=RandomSampler(crops, generator=order),
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pinned,
            generator=torch.Generator().manual_seed(seed),  # seeds the workers, and none of what is seeded above
        ),
        # Images of one split may differ in size, so each is a batch of its own.
        DataLoader(WholeImages(dataset.split("val")), num_workers=min(workers, 2), pin_memory=pinned),
    )


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hide Lightning's hints about workers, loggers and other products from the user."""
    noisy = ("lightning.pytorch", "lightning.fabric", "torch.utils.cpp_extension")  # the last looks for CUDA aloud
    loggers = [logging.getLogger(name) for name in noisy]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", module=r"lightning\.")  # its use of deprecated names of torch
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _sigint_restored() -> Iterator[None]:
    """Put back the handler of SIGINT, which Lightning leaves ignored after an interrupt."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # outside the main thread handlers cannot be set, and were not changed
            signal.signal(signal.SIGINT, handler)

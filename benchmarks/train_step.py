"""How much of a bare PyTorch loop's speed does `fcnseg train` keep, and how long does it wait for data?

Run it: python benchmarks/train_step.py DATA [--steps N] [--rounds N] [--json FILE] [options of fcnseg train]
        python benchmarks/train_step.py DATA --memory [options of fcnseg train]

One side is `training.fit` as the command runs it: Lightning's Trainer with all its callbacks, with the options that are
given; by default those of the command, mobilenet_v2, and data read in this process. The other is the loop that one
would write by hand on the same net, crops, loss, optimiser, schedule and weight average (torch's own, which updates all
tensors at once). Both start a round from the same weights and the same seed, so that with the data read in this process
they train on the same crops: the program fails where their mean losses then differ. Sides alternate, and so does which
goes first. What `fcnseg.allocator` tells the C library's allocator holds for the whole process, so that the bare loop
has it too.

Timed are the training steps alone, from the start of the epoch to the end of its last step: building the trainer,
validation and checkpoints stand outside. Waiting for data is the time inside next(loader).

--memory runs the command itself for one epoch in a process of its own and tells its peak resident memory.
"""

import argparse
import copy
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.profilers import SimpleProfiler
from reporting import Report, Spread, add_json_option, ordered
from rich.console import Console
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, RandomSampler

from training import fit as fit_module
from training.augment import TrainingCrops
from training.commands.train import train
from training.commands.train_options import given_options
from training.config import TrainConfig
from training.contents import look_into
from training.data import Dataset, open_dataset
from training.device import resolve_workers
from training.losses import SegmentationLoss, balance_classes
from training.model import SegmentationModel
from training.optimisation import build_optimiser, rate_factor
from training.recipes import resolve
from training.run_folder import METRICS
from training.samples import read_sample
from training.stages import build_for
from training.task import ignore_value

WAITS = "[_TrainingEpochLoop].train_dataloader_next"
COMMAND, BARE = "fcnseg train", "bare loop"
DEFAULTS = ["--backbone", "mobilenet_v2", "--workers", "0", "--epochs", "1", "--device", "cpu"]
MOST_APART = 1e-5
COLUMNS = ("side", "images/s", "ratio", "waits for data")


@dataclass(frozen=True)
class Epoch:
    """One side's round: seconds of its steps, those of them spent in next(loader), and the mean loss."""

    seconds: float
    waited: float
    loss: float


class Clock(Callback):
    """Times the training steps of one epoch; the first of the callbacks, so that the others' work is inside."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        self.began = time.perf_counter()

    def on_validation_start(self, *_: object) -> None:
        self.ended = time.perf_counter()


def run_command(model: SegmentationModel, dataset: Dataset, config: TrainConfig, weights: Tensor | None) -> Epoch:
    clock, profiler = Clock(), SimpleProfiler()

    def timed(*, callbacks: list[Callback], **options: Any) -> Trainer:
        return Trainer(callbacks=[clock, *callbacks], profiler=profiler, **options)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(fit_module, "Trainer", timed):
        fit_module.fit(model, dataset, "", config, Path(folder), Console(quiet=True), class_weights=weights)
        (row,) = csv.DictReader((Path(folder) / METRICS).read_text().splitlines())
    return Epoch(clock.ended - clock.began, sum(profiler.recorded_durations[WAITS]), float(row["loss"]))


def run_bare(model: SegmentationModel, dataset: Dataset, config: TrainConfig, weights: Tensor | None) -> Epoch:
    samples, ignored = dataset.split("train"), ignore_value(dataset.label_map.ignore_id)
    crops = TrainingCrops(
        samples,
        ignored,
        crop=config.crop,
        scale_jitter=config.scale_jitter,
        flip=config.flip,
        colour_jitter=config.colour_jitter,
    )
    seed = fit_module.epoch_seed(config.seed, 0)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        crops,
        batch_size=config.batch_size,
        sampler=RandomSampler(crops, generator=order),
        drop_last=True,
        num_workers=resolve_workers(config.workers, "cpu"),
        generator=torch.Generator().manual_seed(config.seed),
    )
    loss_of = SegmentationLoss(config, ignored, weights)
    optimiser = build_optimiser(model, config)
    schedule = LambdaLR(optimiser, lambda step: rate_factor(step, len(loader), config.warmup, config.schedule))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
    model.train()
    for module in model.modules():
        if config.freeze_statistics and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    seed_everything(seed, verbose=False)
    batches = iter(loader)  # workers start here, as Lightning starts them before the epoch
    waited, total = 0.0, torch.zeros(())
    began = time.perf_counter()
    for _ in range(len(loader)):
        asked = time.perf_counter()
        images, masks = next(batches)
        waited += time.perf_counter() - asked
        optimiser.zero_grad()
        loss = loss_of(model.pixel_scores(images.permute(0, 2, 3, 1)), masks)
        loss.backward()
        optimiser.step()
        schedule.step()
        if average is not None:
            average.update_parameters(model)
        total += loss.detach()
    return Epoch(time.perf_counter() - began, waited, float(total) / len(loader))


Side: TypeAlias = Callable[[SegmentationModel, Dataset, TrainConfig, Tensor | None], Epoch]
SIDES: dict[str, Side] = {COMMAND: run_command, BARE: run_bare}


def race(dataset: Dataset, config: TrainConfig, rounds: int) -> dict[str, list[Epoch]]:
    model = build_for(config, dataset.label_map)
    weights = balance_classes(look_into(dataset.split("train"), dataset.label_map), config.class_weights)
    epochs: dict[str, list[Epoch]] = {side: [] for side in SIDES}
    for turn in range(-1, rounds):  # the first, which warms up, is left out
        for side in ordered(SIDES, turn):
            epoch = SIDES[side](copy.deepcopy(model), dataset, config, weights)
            if turn >= 0:
                epochs[side].append(epoch)
    return epochs


def apart(epochs: dict[str, list[Epoch]]) -> float:
    """How far the mean losses of the two sides lie apart at most, as a share of their value."""
    pairs = zip(epochs[COMMAND], epochs[BARE], strict=True)
    return max(abs(command.loss - bare.loss) / bare.loss for command, bare in pairs)


def tell(report: Report, title: str, epochs: dict[str, list[Epoch]], images: int) -> None:
    """Put the rounds into the report."""
    note = (
        f"Waiting for data is the share of the time inside next(loader). The mean losses of the two sides differ by at"
        f" most {apart(epochs):.1e} of their value."
    )
    table = report.table("train_step", title, COLUMNS, note)
    rates = {side: Spread.of(images / epoch.seconds for epoch in found) for side, found in epochs.items()}
    for side, found in epochs.items():
        waits = Spread.of(epoch.waited / epoch.seconds for epoch in found)
        table.add(side, rates[side], 1.0 if side == BARE else rates[side].over(rates[BARE]), waits)


def peak_memory(command: list[str]) -> float:
    """Peak resident memory of a command, in GiB.

    Linux counts what this process held when it started the other: call it before anything large is loaded.
    """
    print("$ " + " ".join(["fcnseg", *command[3:]]), flush=True)
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data", type=Path, help="data folder, as fcnseg train takes it")
    parser.add_argument("--steps", type=int, default=20, help="a round (20)")
    parser.add_argument("--rounds", type=int, default=7, help="of both sides (7)")
    parser.add_argument("--memory", action="store_true", help="peak memory of the command alone, one epoch")
    add_json_option(parser)
    options, others = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(options.data), "-o", f"{folder}/run", *DEFAULTS, *others]
        given = given_options(train.make_context("fcnseg train", [*arguments]).params)
        report = Report(options.json)
        if options.memory:
            peak = peak_memory([sys.executable, "-m", "fcnseg", "train", *arguments])
            columns = ("backbone", "peak resident memory, GiB")
            report.table("memory", "One epoch of the command", columns).add(given["backbone"], Spread.of([peak]))
        else:
            measure(report, options, given)
    report.write()


def measure(report: Report, options: argparse.Namespace, given: dict[str, Any]) -> None:
    """Race the two sides.

    Raises:
        SystemExit: They did other work.
    """
    dataset = open_dataset(options.data)
    samples, batch = dataset.split("train"), given.get("batch_size", TrainConfig.batch_size)
    count = options.steps * batch
    samples = (samples * -(-count // len(samples)))[:count]
    dataset = replace(dataset, splits={"train": samples, "val": dataset.split("val")[:1]})
    own = {name: value for name, value in given.items() if name in TrainConfig.__dataclass_fields__}
    config = resolve(own | {"data": str(options.data)}, read_sample(samples[0])[1].shape)
    size = "whole images" if config.crop is None else f"crops of {config.crop[0]}x{config.crop[1]}"
    threads = torch.get_num_threads()
    title = f"{config.variant} on {config.backbone}: {options.steps} steps of {batch} {size}, {threads} threads"
    epochs = race(dataset, config, options.rounds)
    tell(report, title, epochs, count)
    if config.workers == 0 and apart(epochs) > MOST_APART:
        raise SystemExit(f"the losses differ by more than {MOST_APART:.0e} of their value: the two sides do other work")


if __name__ == "__main__":
    main()

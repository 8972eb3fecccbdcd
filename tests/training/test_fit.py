import csv
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from fcnseg.errors import DatasetError, DeviceError, FcnsegError, UsageError
from training.averaging import MovingAverage
from training.commands.train import train
from training.config import Precision, TrainConfig, from_plain, read_config
from training.data import Dataset, fingerprint, open_dataset
from training.evaluation import TorchNet, measure, open_predictor
from training.fit import fit
from training.losses import cross_entropy
from training.model import SegmentationModel, build_model
from training.optimisation import rate_factor
from training.run import Run, RunRecord, can_resume, open_run
from training.run_folder import prepare_folder
from training.scenes import LABEL_MAP, write_scenes

BACKBONE = "squeezenet1_1"
HALVES = (0.5, 0.5, 0.5)
_LONGEST_S = 180
METRICS = {"mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    list(write_scenes(folder, {"train": 8, "val": 3}, size=48))
    return folder


@pytest.fixture(scope="module")
def config(scenes: Path) -> TrainConfig:
    return TrainConfig(str(scenes), BACKBONE, epochs=3, batch_size=4, crop=(64, 64), device="cpu")


@pytest.fixture(scope="module")
def run(scenes: Path, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_from_noise(open_dataset(scenes), config, folder)
    return folder


def make_model(backbone: str) -> SegmentationModel:
    torch.manual_seed(0)
    return build_model(backbone, "fcn8s", len(LABEL_MAP), mean=HALVES, std=HALVES, pretrained=False)


def train_from_noise(dataset: Dataset, config: TrainConfig, folder: Path) -> SegmentationModel:
    model = make_model(config.backbone)
    prepare_folder(folder, overwrite=False)
    fit(model, dataset, fingerprint(dataset, ["train", "val"]), config, folder, Console(stderr=True))
    return model


def read_rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    content: dict[str, dict[str, Tensor]] = torch.load(checkpoint, weights_only=True)
    return content["state_dict"]


def test_a_run_leaves_its_configuration_and_one_row_an_epoch(run: Path, config: TrainConfig) -> None:
    assert from_plain(yaml.safe_load((run / "config.yaml").read_text())) == config
    rows = read_rows(run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in ("mean_iou", "pixel_accuracy"))
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "environment.json", "metrics.csv", "curves.png", "samples", "tensorboard"),
        *("best.ckpt", "last.ckpt"),
    }


@pytest.mark.parametrize(("precision", "training_rounds"), [("bf16", True), ("fp32", False)])
def test_what_is_fp32_is_never_tf32(
    scenes: Path, config: TrainConfig, tmp_path: Path, *, precision: Precision, training_rounds: bool
) -> None:
    """On CUDA convolutions of fp32 are TF32 unless torch is told otherwise; the CPU shows what it is told."""
    rounded: dict[bool, set[bool]] = {True: set(), False: set()}

    def note(net: torch.nn.Module, _args: tuple[Tensor]) -> None:
        rounded[net.training].add(torch.backends.cudnn.allow_tf32)

    model = make_model(BACKBONE)
    model.net.register_forward_pre_hook(note)
    dataset, short = open_dataset(scenes), replace(config, epochs=1, precision=precision)
    fit(model, dataset, "", short, tmp_path, Console(stderr=True))
    assert rounded == {True: {training_rounds}, False: {False}}
    rounded[False].clear()
    net = TorchNet(Run(tmp_path, model.eval(), RunRecord(short, LABEL_MAP, HALVES, HALVES, "")), "cpu")
    image = np.zeros((64, 64, 3), np.uint8)
    net.predict(image)
    net.heatmap(image)
    assert rounded[False] == {False}
    assert torch.backends.cudnn.allow_tf32


def test_fp16_on_the_cpu_is_refused_before_an_earlier_run_is_replaced(
    config: TrainConfig, run: Path, tmp_path: Path
) -> None:
    kept = shutil.copytree(run, tmp_path / "run")
    options = ["--backbone", BACKBONE, "--no-pretrained", "--device", "cpu", "--precision", "fp16", "--overwrite"]
    result = CliRunner().invoke(train, [config.data, *options, "-o", str(kept)])
    assert isinstance(result.exception, DeviceError)
    assert (kept / "last.ckpt").is_file()


def test_a_run_shows_its_course_as_pictures_and_to_tensorboard(run: Path, scenes: Path) -> None:
    with Image.open(run / "curves.png") as curves, Image.open(run / "samples" / "epoch_0003.jpg") as samples:
        assert curves.size[0] > 500
        assert samples.size == (3 * 48 + 2 * 4, 3 * 48 + 2 * 4)  # three images of 48 pixels: image, truth, prediction
    assert {path.name for path in (run / "samples").iterdir()} == {"epoch_0001.jpg", "epoch_0003.jpg"}
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("val/mean_iou")]
    assert logged == pytest.approx([float(row["mean_iou"]) for row in read_rows(run)], abs=1e-6)
    assert {"loss/train", "lr", "val/pixel_accuracy", "iou/background"} <= set(events.Tags()["scalars"])
    environment = json.loads((run / "environment.json").read_text())
    assert environment["data_fingerprint"] == fingerprint(open_dataset(scenes), ["train", "val"])
    assert "torch" in environment["packages"]


def test_a_runs_configuration_repeats_it(scenes: Path, tmp_path: Path) -> None:
    options = [*train_arguments(scenes, tmp_path), "--epochs", "1", "--crop", "48x64", "--batch-size", "4"]
    first = CliRunner().invoke(train, [*options, "--device", "cpu", "-o", str(tmp_path / "first")])
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(
        train, ["--config", str(tmp_path / "first" / "config.yaml"), "-o", str(tmp_path / "again")]
    )
    assert again.exit_code == 0, again.output
    a, b = (weights_of(tmp_path / name / "best.ckpt") for name in ("first", "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = CliRunner().invoke(
        train, ["--config", str(tmp_path / "first" / "config.yaml"), "--recipe", "paper", "-o", str(tmp_path / "other")]
    )
    assert isinstance(other.exception, UsageError)
    assert "--recipe cannot be combined with --config" in str(other.exception)


def test_the_best_checkpoint_holds_the_averaged_weights_and_nothing_that_only_resuming_needs(run: Path) -> None:
    best, last = (torch.load(run / name, weights_only=True) for name in ("best.ckpt", "last.ckpt"))
    assert set(best) == {"epoch", "global_step", "pytorch-lightning_version", "state_dict", "fcnseg"}
    current, averaged = last["current_model_state"], last["state_dict"]
    assert current.keys() == averaged.keys()
    assert any(not torch.equal(current[name], averaged[name]) for name in current)


class Weights(torch.nn.Module):
    def __init__(self, count: int, dtypes: tuple[torch.dtype, ...]) -> None:
        super().__init__()
        shapes = [(), (7,), (3, 5), (2, 3, 3, 3)]
        self.all = torch.nn.ParameterList(
            torch.randn(shapes[i % len(shapes)], dtype=dtypes[i % len(dtypes)]) for i in range(count)
        )

    def move(self) -> None:
        with torch.no_grad():
            for weight in self.all:
                weight.add_(torch.randn_like(weight))


class Reads(TorchDispatchMode):
    """Counts the numbers that are read out of tensors, for each of which a GPU would be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def averaged_model(net: Weights, decay: float) -> AveragedModel:
    return AveragedModel(net, use_buffers=False, **MovingAverage(decay)._kwargs)


def test_the_average_begins_with_few_steps_and_keeps_its_decay_later() -> None:
    torch.manual_seed(0)
    net = Weights(9, (torch.float32, torch.float64, torch.bfloat16))
    average = averaged_model(net, 0.5)
    expected: list[Tensor] = []
    for step in range(25):
        net.move()
        average.update_parameters(net)
        weights = [weight.detach().clone() for weight in net.all]
        share = 1 - min(0.5, (1 + step) / (10 + step))
        expected = [torch.lerp(a, w, share) for a, w in zip(expected, weights, strict=True)] if step else weights
        assert all(torch.equal(a, e) for a, e in zip(average.parameters(), expected, strict=True))


def test_a_step_of_the_average_reads_no_number_for_each_weight() -> None:
    reads = []
    for count in (2, 50):
        net = Weights(count, (torch.float32,))
        average = averaged_model(net, 0.9)
        average.update_parameters(net)
        with Reads() as mode:  # type: ignore[no-untyped-call]
            average.update_parameters(net)
        reads.append(mode.count)
    assert reads[0] == reads[1]


def test_whole_images_of_several_sizes_are_no_batch(scenes: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(scenes, mixed)
    image = next((mixed / "images").glob("train_*"))
    for path in (image, mixed / "masks" / f"{image.stem}.png"):
        with Image.open(path) as picture:
            picture.crop((0, 0, 40, 48)).save(path)
    options = [*train_arguments(mixed, tmp_path), "--crop", "whole", "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(train, options)
    assert isinstance(result.exception, UsageError)
    assert "--batch-size 1" in str(result.exception)


def test_the_best_checkpoint_is_that_of_the_best_epoch(run: Path) -> None:
    rows = read_rows(run)
    best = max(rows, key=lambda row: float(row["mean_iou"]))
    opened = open_run(run)
    assert opened.record.epoch == int(best["epoch"])
    assert opened.record.metrics["mean_iou"] == float(best["mean_iou"])
    assert open_run(run / "last.ckpt").record.epoch == 3


def test_a_checkpoint_rebuilds_the_model_with_all_that_it_means(run: Path, scenes: Path, config: TrainConfig) -> None:
    opened = open_run(run)
    assert opened.record.label_map == LABEL_MAP
    assert opened.record.config == config
    assert (opened.model.mean, opened.model.std) == (HALVES, HALVES)
    assert (opened.model.architecture, opened.model.variant) == (BACKBONE, "fcn8s")
    assert opened.record.data_fingerprint == fingerprint(open_dataset(scenes), ["train", "val"])
    assert not opened.model.training


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_evaluating_a_checkpoint_reproduces_its_validation_exactly(run: Path, scenes: Path, name: str) -> None:
    samples = open_dataset(scenes).split("val")
    *_, scores = measure(open_predictor(run / name, "cpu"), samples, LABEL_MAP.ignore_id)
    record = open_run(run / name).record
    assert {metric: getattr(scores, metric) for metric in METRICS} == record.metrics
    assert scores.per_class_iou == tuple(record.class_iou.values())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    scenes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    dataset = open_dataset(scenes)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_from_noise(dataset, replace(config, epochs=1, seed=seed), tmp_path / name)
    a, b, c = (weights_of(tmp_path / name / "last.ckpt") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_and_others_follow_the_data(
    scenes: Path, config: TrainConfig, tmp_path: Path, *, frozen: bool
) -> None:
    dataset = open_dataset(scenes)
    config = replace(config, backbone="resnet18", epochs=1, freeze_statistics=frozen)
    before = {k: v.clone() for k, v in make_model("resnet18").named_buffers() if k.endswith("running_mean")}
    after = dict(train_from_noise(dataset, config, tmp_path / "run").named_buffers())
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items()) is frozen


def test_a_net_with_dropout_in_place_trains(scenes: Path, config: TrainConfig, tmp_path: Path) -> None:
    """MNASNet's dropout would overwrite the output of the ReLU before it, which the gradient needs."""
    train_from_noise(open_dataset(scenes), replace(config, backbone="mnasnet0_5", epochs=1), tmp_path / "run")
    assert open_run(tmp_path / "run").record.epoch == 1


def test_the_loss_is_the_mean_over_labelled_pixels_alone() -> None:
    torch.manual_seed(0)
    scores, masks = torch.randn(2, 3, 5, 7), torch.randint(0, 3, (2, 5, 7))
    masks[:, 1:3] = 9
    log_probabilities = scores.log_softmax(1).permute(0, 2, 3, 1)[masks != 9]
    by_hand = -log_probabilities[torch.arange(len(log_probabilities)), masks[masks != 9]].mean()
    torch.testing.assert_close(cross_entropy(scores, masks, 9), by_hand)


def test_a_batch_without_a_label_has_loss_zero_and_finite_gradients() -> None:
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(scores, torch.full((1, 4, 4), 255), 255)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.abs().max() == 0


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.5))
def test_the_learning_rate_climbs_to_its_peak_once_and_then_falls(steps: int, warmup: float) -> None:
    factors = [rate_factor(step, steps, warmup) for step in range(steps + 1)]
    peak = factors.index(max(factors))
    assert math.isclose(factors[peak], 1.0)
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert peak <= max(1, round(steps * warmup))


def test_a_run_that_diverges_is_an_error_and_keeps_nothing(scenes: Path, tmp_path: Path) -> None:
    """The loss of the first step is still a number, and what comes of it is told at once."""
    run = tmp_path / "run"
    options = [*train_arguments(scenes, tmp_path), "--crop", "64", "--batch-size", "1", "--epochs", "1"]
    steep = ["--lr", "1e9", "--backbone-lr-factor", "1", "--warmup", "0"]
    result = CliRunner().invoke(train, [*options, *steep, "--device", "cpu", "-o", str(run)])
    assert isinstance(result.exception, UsageError), result.output
    told = re.fullmatch(
        r"the loss is nan in epoch 1, step (\d); take a lower --lr \(it was 1e\+09\)", str(result.exception)
    )
    assert told is not None, result.exception
    assert 1 < int(told[1]) < 8
    assert {path.name for path in run.glob("[!.]*")} == {"config.yaml", "environment.json", "tensorboard"}


def test_an_epoch_whose_only_step_ruins_the_weights_is_not_kept(scenes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*train_arguments(scenes, tmp_path), "--crop", "64", "--batch-size", "8", "--epochs", "1"]
    steep = ["--optimiser", "sgd", "--lr", "1e30", "--backbone-lr-factor", "1", "--warmup", "0"]
    result = CliRunner().invoke(train, [*options, *steep, "--device", "cpu", "-o", str(run)])
    told = "the scores of the validation images are not finite after epoch 1; take a lower --lr (it was 1e+30)"
    assert isinstance(result.exception, UsageError), result.output
    assert str(result.exception) == told
    assert not [path.name for path in run.iterdir() if path.suffix in {".ckpt", ".csv"}]


@pytest.mark.parametrize(
    ("training", "told"),
    [
        (True, "a step of 4 crops of 64x64 pixels did not fit into the GPU's memory; take a smaller --batch-size or"),
        (False, "a validation image, which is taken whole, did not fit into the GPU's memory; make the images of val"),
    ],
)
def test_a_gpu_of_too_little_memory_is_told_with_what_takes_less(
    scenes: Path, config: TrainConfig, tmp_path: Path, *, training: bool, told: str
) -> None:
    def run_out(net: torch.nn.Module, _args: tuple[Tensor]) -> None:
        if net.training is training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1.00 GiB.")

    model = make_model(BACKBONE)
    model.net.register_forward_pre_hook(run_out)
    with pytest.raises(UsageError) as refusal:
        fit(model, open_dataset(scenes), "", config, tmp_path, Console(stderr=True))
    assert str(refusal.value).startswith(told)
    assert "\n" not in str(refusal.value)


def test_a_cpu_of_too_little_memory_is_told_with_what_takes_less(
    scenes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    def run_out(_net: torch.nn.Module, _args: tuple[Tensor]) -> None:
        torch.empty(2**58, dtype=torch.uint8)

    model = make_model(BACKBONE)
    model.net.register_forward_pre_hook(run_out)
    with pytest.raises(UsageError, match="a step of 4 crops of 64x64 pixels did not fit into memory"):
        fit(model, open_dataset(scenes), "", config, tmp_path, Console(stderr=True))


def test_an_image_that_goes_while_workers_read_is_told_in_one_line(
    scenes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    dataset = open_dataset(shutil.copytree(scenes, tmp_path / "data"))
    gone = dataset.split("train")[0].image
    gone.unlink()
    with pytest.raises(DatasetError) as refusal:
        fit(make_model(BACKBONE), dataset, "", replace(config, workers=1), tmp_path / "run", Console(stderr=True))
    assert str(refusal.value).startswith(f"image {gone} does not exist")
    assert "\n" not in str(refusal.value)


def test_a_worker_that_is_killed_is_told_with_what_takes_less_memory(
    scenes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    def kill_a_worker(_net: torch.nn.Module, _args: tuple[Tensor]) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    model = make_model(BACKBONE)
    model.net.register_forward_pre_hook(kill_a_worker)
    lasting = replace(config, workers=1, epochs=50)
    with pytest.raises(UsageError, match=r"fewer --workers, or none \(0\), and continue with --resume"):
        fit(model, open_dataset(scenes), "", lasting, tmp_path, Console(stderr=True))


def test_a_step_too_small_for_batchnorm_is_told_with_what_helps(
    scenes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    small = replace(config, backbone="resnet18", batch_size=1, crop=(32, 32), freeze_statistics=False)
    with pytest.raises(UsageError, match="a step of 1 crops of 32x32 pixels leaves it one; take a larger --batch-size"):
        fit(make_model("resnet18"), open_dataset(scenes), "", small, tmp_path, Console(stderr=True))


def test_a_folder_that_holds_a_run_is_refused_and_kept(run: Path, scenes: Path, tmp_path: Path) -> None:
    before = (run / "best.ckpt").read_bytes()
    result = CliRunner().invoke(train, [*train_arguments(scenes, tmp_path), "-o", str(run)])
    assert isinstance(result.exception, UsageError)
    assert "--overwrite" in str(result.exception)
    assert (run / "best.ckpt").read_bytes() == before


@pytest.mark.parametrize(("processes", "refusal"), [("2", UsageError), ("1", DatasetError)])
def test_a_run_of_several_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str, refusal: type[FcnsegError]
) -> None:
    """As torchrun starts them; that of one goes on to look for its data."""
    monkeypatch.setenv("WORLD_SIZE", processes)
    nowhere = [str(tmp_path / "nowhere"), "--backbone", BACKBONE, "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(train, nowhere)
    assert type(result.exception) is refusal
    assert (str(result.exception).count("\n"), "torchrun" in str(result.exception)) == (0, processes == "2")


def test_a_mean_without_a_std_is_refused(scenes: Path, tmp_path: Path) -> None:
    arguments = [str(scenes), "--backbone", BACKBONE, "--mean", "0.5", "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(train, arguments)
    assert isinstance(result.exception, UsageError)
    assert "--std" in str(result.exception)


def test_a_killed_run_that_is_resumed_ends_with_the_weights_that_it_would_have_had(
    scenes: Path, tmp_path: Path
) -> None:
    """On another machine, as it were: the data lie elsewhere, and the classifier is not there."""
    options = [*train_arguments(scenes, tmp_path), "--epochs", "3", "--crop", "64", "--batch-size", "4"]
    straight = CliRunner().invoke(train, [*options, "--device", "cpu", "-o", str(tmp_path / "straight")])
    assert straight.exit_code == 0, straight.output
    run, moved = tmp_path / "run", tmp_path / "moved"
    with training_process([*options, "-o", str(run), "--resume"]) as process:
        wait_for_epoch(process, 2)
        process.kill()
    (run / ".last.0123abcd.part.ckpt").write_bytes(b"what it was writing")
    (tmp_path / "weights.pth").unlink()
    shutil.copytree(scenes, moved)
    begun = {**json.loads((run / "environment.json").read_text()), "system": "of the first epochs"}
    (run / "environment.json").write_text(json.dumps(begun))
    kept = open_run(run / "last.ckpt").record.epoch
    resumed = CliRunner().invoke(train, [str(moved), *options[1:], "--device", "cpu", "-o", str(run), "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert f"going on behind epoch {kept}" in resumed.stderr
    assert not list(run.rglob(".*.part*"))
    expected, found = (weights_of(folder / "last.ckpt") for folder in (tmp_path / "straight", run))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    rows, others = read_rows(run), read_rows(tmp_path / "straight")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [(row["loss"], row["mean_iou"]) for row in rows] == [(row["loss"], row["mean_iou"]) for row in others]
    assert open_run(run).record == replace(open_run(tmp_path / "straight").record, config=open_run(run).record.config)
    assert read_config(run / "config.yaml").data == str(moved)
    environment = json.loads((run / "environment.json").read_text())
    (later,) = environment.pop("resumed")
    assert environment == begun
    assert (later["after_epoch"], later["system"]) == (kept, platform.platform())


def test_a_run_is_not_resumed_with_other_options_or_on_other_data(run: Path, scenes: Path, config: TrainConfig) -> None:
    data = fingerprint(open_dataset(scenes), ["train", "val"])
    assert can_resume(run, config, data)
    assert can_resume(run, replace(config, workers=2, data="where it lies now"), data)
    assert not can_resume(scenes, config, data)
    with pytest.raises(UsageError, match="was begun with lr 0.01, and 0.5 was asked for"):
        can_resume(run, replace(config, lr=0.5), data)
    with pytest.raises(UsageError, match="begun on other data"):
        can_resume(run, config, "0" * 64)


def test_resuming_never_clears_away_a_finished_run_or_what_is_no_run(
    run: Path, scenes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    rest, own = tmp_path / "rest", tmp_path / "own"
    shutil.copytree(run, rest)
    (rest / "last.ckpt").unlink()
    with pytest.raises(UsageError, match=r"cannot go on without its last\.ckpt"):
        can_resume(rest, config, fingerprint(open_dataset(scenes), ["train", "val"]))
    (own / "samples").mkdir(parents=True)
    (own / "samples" / "photo.jpg").write_bytes(b"mine")
    result = CliRunner().invoke(train, [*train_arguments(scenes, tmp_path), "-o", str(own), "--resume"])
    assert isinstance(result.exception, UsageError)
    assert (own / "samples" / "photo.jpg").read_bytes() == b"mine"


def test_resuming_leaves_a_folder_alone_whose_configuration_was_written_by_hand(scenes: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "samples").mkdir(parents=True)
    mine = {own / "config.yaml": f"# mine\ndata: {scenes}\nbackbone: {BACKBONE}\n", own / "samples" / "photo": "mine"}
    for path, content in mine.items():
        path.write_text(content)
    options = ["--config", str(own / "config.yaml"), *train_arguments(scenes, tmp_path), "-o", str(own)]
    for more in ([], ["--resume"]):
        result = CliRunner().invoke(train, [*options, *more])
        assert isinstance(result.exception, UsageError)
        assert re.search(r"config\.yaml, samples, and no environment\.json.* --overwrite$", str(result.exception))
        assert {path: path.read_text() for path in mine} == mine


@pytest.mark.parametrize("left", [["environment.json"], ["environment.json", "config.yaml", "tensorboard"]])
def test_resuming_begins_a_run_anew_that_finished_no_epoch(run: Path, tmp_path: Path, left: list[str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=lambda _, names: set(names) - set(left) if "last.ckpt" in names else set())
    with pytest.raises(UsageError, match="add --resume"):
        prepare_folder(folder, overwrite=False)
    assert {path.name for path in folder.iterdir()} == set(left)
    prepare_folder(folder, overwrite=False, resume=True)
    assert not list(folder.iterdir())


def test_the_best_weights_are_those_of_the_epoch_that_the_last_checkpoint_calls_best(run: Path) -> None:
    best = open_run(run / "best.ckpt").record
    rows = read_rows(run)
    assert best.metrics["mean_iou"] == max(float(row["mean_iou"]) for row in rows)
    written = [(run / name).stat().st_mtime_ns for name in ("best.ckpt", "last.ckpt")]
    assert best.epoch < len(rows) or written == sorted(written)


def test_whole_images_of_sizes_drawn_anew_make_no_batch(scenes: Path, tmp_path: Path) -> None:
    options = ["--crop", "whole", "--batch-size", "4", "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(train, [*train_arguments(scenes, tmp_path), *options])
    assert isinstance(result.exception, UsageError)
    assert "--scale-jitter 1 1" in str(result.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_cleanly_and_leaves_a_usable_checkpoint(
    scenes: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    options = ["--epochs", "1000", "--crop", "64", "--batch-size", "4"]
    with training_process([*train_arguments(scenes, tmp_path), *options, "-o", str(run)]) as process:
        seen = wait_for_epoch(process, 1)
        process.send_signal(number)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(timeout=60) == code, seen + rest
    assert "interrupted" in rest
    assert "--resume" in rest
    assert "Traceback" not in rest
    last = open_run(run / "last.ckpt").record
    assert last.epoch >= 1
    assert set(last.metrics) == set(open_run(run).record.metrics) == METRICS


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_two_programs_do_not_train_into_one_folder(scenes: Path, tmp_path: Path, option: str) -> None:
    run = tmp_path / "run"
    arguments = [*train_arguments(scenes, tmp_path), "--crop", "64", "--batch-size", "4", "-o", str(run), "--epochs"]
    with training_process([*arguments, "1000"]) as process:
        wait_for_epoch(process, 1)
        second = CliRunner().invoke(train, [*arguments, "1", "--device", "cpu", option])
        assert process.poll() is None
    assert isinstance(second.exception, UsageError)
    assert str(second.exception) == f"another program is training into {run}; wait for it, or name another folder"
    assert (run / "metrics.csv").is_file()


def test_a_run_ends_cleanly_where_its_workers_are_terminated_with_it(scenes: Path, tmp_path: Path) -> None:
    """As by systemd or a cluster's scheduler, which signal all processes of a job."""
    options = ["--epochs", "1000", "--crop", "64", "--batch-size", "4", "--workers", "1", "-o", str(tmp_path / "run")]
    with training_process([*train_arguments(scenes, tmp_path), *options]) as process:
        seen = wait_for_epoch(process, 1)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM, seen + rest
    assert "go on with --resume" in rest


def test_a_run_interrupted_while_its_first_epoch_is_written_keeps_that_epoch(
    scenes: Path, config: TrainConfig, run: Path, tmp_path: Path
) -> None:
    dataset, model, interrupts = open_dataset(scenes), make_model(BACKBONE), [KeyboardInterrupt]

    def interrupt(*_args: object) -> None:
        if interrupts:
            raise interrupts.pop()

    model.register_state_dict_pre_hook(interrupt)  # type: ignore[no-untyped-call]
    data = fingerprint(dataset, ["train", "val"])
    with pytest.raises(KeyboardInterrupt):
        fit(model, dataset, data, config, tmp_path, Console(stderr=True))
    kept = open_run(tmp_path / "last.ckpt")
    assert (kept.record.epoch, open_run(tmp_path / "best.ckpt").record.epoch) == (1, 1)
    assert can_resume(tmp_path, config, data)
    fit(kept.model, dataset, data, config, tmp_path, Console(stderr=True), after_epoch=1)
    expected, found = (weights_of(folder / "last.ckpt") for folder in (run, tmp_path))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_workers_of_a_resumed_run_do_not_draw_the_first_epochs_crops_again(scenes: Path, tmp_path: Path) -> None:
    """The weights stay as they are, so that equal losses would be those of equal crops."""
    still = TrainConfig(
        str(scenes), "resnet18", epochs=2, batch_size=4, crop=(32, 32), lr=1e-30, ema=0, workers=1, device="cpu"
    )
    dataset, data = open_dataset(scenes), "data"
    fit(make_model("resnet18"), dataset, data, replace(still, epochs=1), tmp_path, Console(stderr=True))
    kept = open_run(tmp_path / "last.ckpt").model
    fit(kept, dataset, data, still, tmp_path, Console(stderr=True), after_epoch=1)
    losses = [row["loss"] for row in read_rows(tmp_path)]
    assert losses[0] != losses[1]


def test_an_epoch_that_cannot_be_kept_is_told_in_one_line(scenes: Path, tmp_path: Path) -> None:
    """As on a full disk: files of more than a megabyte, which checkpoints are, cannot be written."""
    run = tmp_path / "run"
    options = ["--epochs", "1", "--crop", "64", "--device", "cpu", "-o", str(run)]
    command = [sys.executable, "-m", "fcnseg", "train", *train_arguments(scenes, tmp_path), *options]
    limited = ["bash", "-c", 'ulimit -f 1024; exec "$@"', "bash", *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, timeout=_LONGEST_S)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"fcnseg: error: epoch 1 cannot be kept in {run} (File too large); make room"), line
    assert line.endswith("with --resume")
    assert not [path.name for path in run.iterdir() if "ckpt" in path.name]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("seed", str(2**32), "4294967296 is not in the range 0<=x<=4294967295"),
        ("momentum", "1", "1.0 is not in the range 0<=x<1"),
        ("mean", "nan", "'nan' is neither one number nor three"),
        ("std", "1,inf,1", "'1,inf,1' is neither one number nor three"),
    ],
)
def test_numbers_that_nothing_can_be_done_with_are_refused(
    scenes: Path, tmp_path: Path, option: str, value: str, told: str
) -> None:
    arguments = [*train_arguments(scenes, tmp_path), f"--{option}", value, "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(train, arguments)
    assert (result.exit_code, told in result.output) == (2, True), result.output
    number = [float(part) for part in value.split(",")]
    both = {"mean": HALVES, "std": HALVES} if option in {"mean", "std"} else {}
    values = {"data": "d", "backbone": "b", **both, option: (number * 3)[:3] if both else number[0]}
    with pytest.raises(UsageError, match=option):
        from_plain(values)


@contextmanager
def training_process(arguments: list[str]) -> "Iterator[subprocess.Popen[str]]":
    """Run `fcnseg train`; it is killed in the end, or after minutes, so that nobody reads what it says for ever."""
    command = [sys.executable, "-m", "fcnseg", "train", *arguments, "--device", "cpu"]
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stderr=pipe, stdout=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        last_resort = threading.Timer(_LONGEST_S, process.kill)
        last_resort.start()
        try:
            yield process
        finally:
            last_resort.cancel()
            process.kill()


def wait_for_epoch(process: "subprocess.Popen[str]", epoch: int) -> str:
    """Read what a training says until it has finished an epoch."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if line.startswith("epoch") and line.split()[1].startswith(f"{epoch}/"):
            return seen
    raise AssertionError(seen)


def train_arguments(scenes: Path, folder: Path) -> list[str]:
    """Arguments for `fcnseg train` with random weights from a file, so that nothing is downloaded."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    weights = folder / "weights.pth"
    torch.save(squeezenet1_1().state_dict(), weights)
    return [str(scenes), "--backbone", BACKBONE, "--weights", str(weights), "--mean", "0.5", "--std", "0.5"]

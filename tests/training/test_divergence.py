import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from training.commands.train import train
from training.running_loss import RunningLoss
from training.scenes import write_scenes

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = """
from torch import nn

class Tiny(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
"""


def test_a_running_loss_is_the_mean_of_its_epoch() -> None:
    loss = RunningLoss()
    for value in range(45):
        loss.update(torch.tensor(float(value)))
        assert loss.seen == loss.mean() == value / 2
    assert loss.recent == sum(range(20, 40)) / 20
    loss.reset()
    assert (loss.seen, loss.recent) == (0, 0)
    loss.update(torch.tensor(3.0))
    loss.update(torch.tensor(math.inf))
    assert loss.mean() == math.inf


def test_a_device_that_works_ahead_is_not_waited_for_in_every_step() -> None:
    """There is nothing to be read from the meta device, so that looking is an error."""
    loss = RunningLoss()
    looked = []
    for step in range(1, 45):
        try:
            loss.update(torch.ones((), device="meta"))
        except RuntimeError:
            looked.append(step)
    assert looked == [1, 20, 40]


def test_a_run_whose_loss_rises_is_warned_of_while_it_trains(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    list(write_scenes(tmp_path / "scenes", {"train": 30, "val": 1}, size=32))
    options = ["--backbone", f"{tmp_path / 'tiny.py'}:Tiny", "--mean", "0.5", "--std", "0.5", "--no-pretrained"]
    steep = ["--optimiser", "sgd", "--lr", "3", "--backbone-lr-factor", "1", "--schedule", "constant", "--warmup", "0"]
    steps = ["--batch-size", "1", "--epochs", "2", "--crop", "32", "--device", "cpu"]
    result = CliRunner().invoke(
        train, [str(tmp_path / "scenes"), *options, *steep, *steps, "-o", str(tmp_path / "run")]
    )
    lines = [line for line in result.output.splitlines() if "diverges" in line]
    assert len(lines) == 1, result.output
    assert lines[0].startswith("warning: the loss has risen from ")
    assert "by epoch 1, step 20: the run diverges; take a lower --lr (it was 3)" in lines[0]

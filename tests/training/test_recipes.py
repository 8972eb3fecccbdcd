from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fcnseg.errors import UsageError
from training.config import TrainConfig, as_plain, from_plain, read_config, read_values, write_config
from training.optimisation import build_optimiser, rate_factor
from training.recipes import Sgd, equivalent_sgd, resolve

GIVEN = {"data": "d", "backbone": "vgg16"}
VOC_IMAGE = (375, 500)


def descend(sgd: Sgd, batches: Tensor, reduction: str) -> Tensor:
    """Fit w to pixels (steps, N, P) by SGD on (w - pixel)^2, summed or averaged over a batch."""
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimiser = torch.optim.SGD([weight], sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    for batch in batches:
        optimiser.zero_grad()
        losses = (weight - batch).square()
        (losses.sum() if reduction == "sum" else losses.mean()).backward()
        optimiser.step()
    return weight.detach()


@given(
    pixels=st.integers(1, 50),
    batch_size=st.integers(1, 4),
    lr=st.floats(1e-6, 1e-4),
    decay=st.floats(0, 0.1),
)
def test_sgd_on_a_mean_takes_the_steps_of_the_sum(pixels: int, batch_size: int, lr: float, decay: float) -> None:
    data = torch.randn(6, batch_size, pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(pixels))
    single = Sgd(lr, 0.99, decay)
    by_sum = descend(equivalent_sgd(single, batch_size, "sum", pixels), data, "sum")
    by_mean = descend(equivalent_sgd(single, batch_size, "mean", pixels), data, "mean")
    torch.testing.assert_close(by_sum, by_mean)


def test_a_batch_of_one_and_a_sum_is_the_paper_itself() -> None:
    single = Sgd(1e-10, 0.99, 5e-4)
    assert equivalent_sgd(single, 1, "sum", 1000) == single


def test_the_papers_rate_for_a_mean_over_its_images_is_two_in_a_hundred_thousand() -> None:
    config = resolve({**GIVEN, "recipe": "paper", "variant": "fcn32s", "reduction": "mean"}, VOC_IMAGE)
    assert config.lr == pytest.approx(1.875e-5)


@pytest.mark.parametrize(
    ("variant", "start", "lr", "skip_scale"),
    [
        ("fcn32s", None, 1e-10, 1.0),
        ("fcn16s", "run", 1e-12, 1.0),
        ("fcn8s", "run", 1e-14, 1.0),
        ("fcn8s", None, 1e-10, 0.01),
    ],
)
def test_the_paper_recipe_has_the_released_solvers_options(
    variant: str, start: str | None, lr: float, skip_scale: float
) -> None:
    given_options = {**GIVEN, "recipe": "paper", "variant": variant, **({"start": start} if start else {})}
    config = resolve(given_options, VOC_IMAGE)
    assert config.lr == pytest.approx(lr)
    assert (config.optimiser, config.momentum, config.weight_decay) == ("sgd", 0.99, pytest.approx(5e-4))
    assert (config.batch_size, config.crop, config.reduction) == (1, None, "sum")
    assert (config.bias_lr_factor, config.schedule, config.skip_scale) == (2.0, "constant", skip_scale)
    assert (config.flip, config.colour_jitter, config.scale_jitter) == (False, 0.0, (1.0, 1.0))


def test_what_is_given_goes_before_the_recipe() -> None:
    config = resolve({**GIVEN, "recipe": "paper", "lr": 0.5, "crop": (64, 96), "ema": 0.9}, VOC_IMAGE)
    assert (config.lr, config.crop, config.ema) == (0.5, (64, 96), 0.9)


def test_the_modern_recipe_is_the_configurations_defaults_but_for_a_crop_that_suits_the_images() -> None:
    config = resolve(GIVEN, (48, 60))
    assert config.crop == (64, 64)
    assert {**asdict(config), "crop": None} == {**asdict(TrainConfig("d", "vgg16")), "crop": None}
    assert resolve(GIVEN, (1024, 2048)).crop == (320, 320)


def test_a_net_that_is_not_pretrained_learns_its_statistics_and_faster() -> None:
    config = resolve({**GIVEN, "pretrained": False}, VOC_IMAGE)
    assert (config.freeze_statistics, config.backbone_lr_factor) == (False, 0.2)
    assert resolve({**GIVEN, "pretrained": False, "freeze_statistics": True}, VOC_IMAGE).freeze_statistics
    assert resolve({**GIVEN, "pretrained": False, "recipe": "paper"}, VOC_IMAGE).backbone_lr_factor == 1.0


def test_biases_learn_at_their_own_rate_and_without_decay() -> None:
    model = nn.ModuleDict({"net": nn.ModuleDict({"trunk": nn.Conv2d(3, 4, 1), "scores": nn.Conv2d(4, 2, 1)})})
    config = from_plain({**GIVEN, "optimiser": "sgd", "lr": 1.0, "backbone_lr_factor": 0.5, "bias_lr_factor": 2.0})
    groups = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in build_optimiser(model, config).param_groups
        for parameter in group["params"]
    }
    found = {name: groups[id(parameter)] for name, parameter in model.named_parameters()}
    assert found == {
        "net.trunk.weight": (0.5, 0.01),
        "net.trunk.bias": (1.0, 0.0),
        "net.scores.weight": (1.0, 0.01),
        "net.scores.bias": (2.0, 0.0),
    }


@given(steps=st.integers(2, 200), schedule=st.sampled_from(["cosine", "poly", "constant"]))
def test_schedules_begin_at_the_peak_without_warm_up_and_never_rise(steps: int, schedule: str) -> None:
    factors = [rate_factor(step, steps, 0.0, schedule) for step in range(steps + 1)]  # type: ignore[arg-type]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == (1.0 if schedule == "constant" else 0.0)


def test_a_configuration_survives_yaml_and_a_part_of_one_is_filled_up(tmp_path: Path) -> None:
    config = resolve({**GIVEN, "recipe": "paper"}, VOC_IMAGE)
    write_config(tmp_path / "config.yaml", config)
    assert read_config(tmp_path / "config.yaml") == config
    assert resolve(read_values(tmp_path / "config.yaml"), (10, 10)) == config
    (tmp_path / "part.yaml").write_text("data: d\nbackbone: vgg16\nepochs: 3\n")
    assert resolve(read_values(tmp_path / "part.yaml"), VOC_IMAGE).epochs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown option 'epoch'; did you mean epochs"),
        ("- epochs", "holds no configuration"),
        ("epochs: [", "cannot be read as a configuration"),
        ("data: d\nbackbone: b\nepochs: many", "epochs is 'many'"),
        ("data: d\nbackbone: b\nvariant: fcn4s", "variant is 'fcn4s'"),
        ("data: d\nbackbone: b\nreduction: sum\ndice: 1.0", "would drown"),
        ("data: d\nbackbone: b\npretrained: false\nweights: w", "not to be pretrained"),
        ("data: d", "backbone: "),
    ],
)
def test_a_configuration_file_that_is_wrong_is_refused_by_the_option(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        resolve(read_values(tmp_path / "config.yaml"), VOC_IMAGE)


def test_plain_values_hold_no_tuples() -> None:
    assert not any(isinstance(value, tuple) for value in as_plain(TrainConfig("d", "b")).values())

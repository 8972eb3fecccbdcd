from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fcnseg.errors import ArchitectureError, UsageError
from fcnseg.types import LabelMap
from training.card import make_card
from training.config import TrainConfig, as_plain
from training.data import open_dataset
from training.fit import fit
from training.recipes import resolve
from training.run import open_run
from training.run_folder import prepare_folder
from training.scenes import LABEL_MAP, write_scenes
from training.stages import build_for

BACKBONE = "mobilenet_v2"
HALVES = (0.5, 0.5, 0.5)
SIZES = ((64, 64), (97, 131), (33, 47))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    list(write_scenes(folder, {"train": 4, "val": 2}, size=64))
    return TrainConfig(
        str(folder), BACKBONE, "fcn32s", pretrained=False, mean=HALVES, std=HALVES,
        epochs=1, batch_size=2, crop=(64, 64), device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def coarse_run(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config, tmp_path_factory.mktemp("runs") / "fcn32s")


def train(config: TrainConfig, folder: Path) -> Path:
    prepare_folder(folder, overwrite=False)
    fit(build_for(config, LABEL_MAP), open_dataset(Path(config.data)), "", config, folder, Console(stderr=True))
    return folder


@pytest.mark.slow
def test_each_stage_starts_with_the_scores_of_the_last(config: TrainConfig, coarse_run: Path, tmp_path: Path) -> None:
    """MobileNetV2's coarse cells lie on its finer ones, so that interpolating twice is interpolating once."""
    before = coarse_run
    for variant in ("fcn16s", "fcn8s"):
        finer = replace(config, variant=variant, start=str(before))  # type: ignore[arg-type]
        model, last = build_for(finer, LABEL_MAP).eval(), open_run(before).model
        for height, width in SIZES:
            image = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
            with torch.no_grad():
                found, expected = model.pixel_scores(image), last.pixel_scores(image)
            assert float(expected.max() - expected.min()) > 0
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        before = train(finer, tmp_path / variant)
    assert open_run(before).record.config.start == str(tmp_path / "fcn16s")


def test_a_finer_variant_takes_over_all_weights_but_its_skips(config: TrainConfig, coarse_run: Path) -> None:
    model = build_for(replace(config, variant="fcn16s", start=str(coarse_run)), LABEL_MAP)
    trained = open_run(coarse_run).model.state_dict()
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())
    assert set(found) - set(trained) == {"net.scores.1.weight", "net.scores.1.bias"}
    assert found["net.scores.1.weight"].abs().max() == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backbone": "resnet18"}, "has backbone mobilenet_v2, and resnet18 was asked for"),
        ({"upsampling": "learned"}, "has upsampling bilinear, and learned was asked for"),
        ({"tail": "gap"}, "has tail auto, and gap was asked for"),
        ({"input_size": (96, 96)}, "has input size the zoo's, and 96x96 was asked for"),
        ({"weights": "other.pth", "pretrained": True}, "--start and --weights both say"),
    ],
)
def test_a_run_that_cannot_be_followed_is_refused(
    config: TrainConfig, coarse_run: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_for(replace(config, start=str(coarse_run), **changed), LABEL_MAP)  # type: ignore[arg-type]


def test_the_normalisation_of_the_earlier_run_goes_on(config: TrainConfig, coarse_run: Path) -> None:
    silent = replace(config, variant="fcn16s", start=str(coarse_run), mean=None, std=None)
    assert build_for(silent, LABEL_MAP).mean == HALVES


def test_a_run_on_other_classes_or_of_a_finer_variant_is_refused(
    config: TrainConfig, coarse_run: Path, tmp_path: Path
) -> None:
    other = LabelMap.from_names(["ground", "thing"], ignore_id=255)
    with pytest.raises(UsageError, match="trained for other classes"):
        build_for(replace(config, start=str(coarse_run)), other)
    fine = train(replace(config, variant="fcn16s", skip_scale=0.01), tmp_path / "fine")
    with pytest.raises(UsageError, match="see features scaled by 0.01, and 1 was asked for"):
        build_for(replace(config, variant="fcn16s", start=str(fine)), LABEL_MAP)
    with pytest.raises(UsageError, match="cannot start from fcn16s, which is finer"):
        build_for(replace(config, start=str(fine)), LABEL_MAP)


OWN_NET = """
from torch import Tensor, nn


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (3, 6, 8, 8, 8, 8)
        stages = [
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            for before, after in zip(widths, widths[1:])
        ]
        self.features = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 2 * 2, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
"""


def test_a_net_of_ones_own_trains_at_its_native_size(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(OWN_NET)
    own = replace(config, backbone=f"{tmp_path}/small.py:Small", variant="fcn8s", tail="fc", pretrained=True)
    with pytest.raises(ArchitectureError, match="give its native size"):
        build_for(own, LABEL_MAP)
    run = train(replace(own, input_size=(64, 64)), tmp_path / "run")
    assert open_run(run).model.net.scores[0].in_channels == 10
    with pytest.raises(UsageError, match="give the --mean and --std"):
        build_for(replace(own, mean=None, std=None), LABEL_MAP)


def test_a_net_of_ones_own_may_say_that_its_weights_are_random(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(OWN_NET)
    options = {**as_plain(config), "backbone": f"{tmp_path}/small.py:Small", "tail": "fc", "input_size": (64, 64)}
    for name in ("pretrained", "backbone_lr_factor", "freeze_statistics"):
        del options[name]
    random = resolve({**options, "pretrained": False}, (64, 64))
    assert (random.backbone_lr_factor, random.freeze_statistics) == (0.2, False)
    model, told_nothing = (build_for(c, LABEL_MAP) for c in (random, resolve(options, (64, 64))))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), told_nothing.parameters(), strict=True))
    run = train(random, tmp_path / "run")
    assert make_card(open_run(run), "small.onnx").weights == "random"

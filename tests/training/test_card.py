import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fcnseg.model_card import to_markdown
from fcnseg.model_file import ModelInfo, dump_info, parse_info, read_model_info
from fcnseg.types import LabelMap
from tests.training.small_nets import seeded
from tests.training.test_model import VggLike, fcn_model
from training.card import make_card
from training.config import TrainConfig, from_plain
from training.export import export
from training.run import Run, RunRecord

LABELS = LabelMap.from_names(["ground", "thing", "speck", "ghost", "mist"], ignore_id=255)
CONFIG = TrainConfig(
    "/home/somewhere/streets",
    "/home/somewhere/nets.py:VggLike",
    weights="/home/somewhere/vgg.pth",
    crop=(64, 96),
    lr=1e-10,
)


@pytest.fixture(scope="module")
def run() -> Run:
    record = RunRecord(
        CONFIG, LABELS, (0.5,) * 3, (0.5,) * 3, "f" * 64, epoch=7, images={"train": 10, "val": 3},
        metrics={"mean_iou": 0.6, "pixel_accuracy": 0.9},
        class_iou={"ground": 0.9, "thing": 0.8, "speck": 0.2, "ghost": None, "mist": 0.5},
    )  # fmt: skip
    return Run(Path("best.ckpt"), fcn_model(seeded(VggLike), (128, 128)), record)


def test_a_card_tells_data_recipe_metrics_licence_limits_and_how_to_reproduce(run: Run, tmp_path: Path) -> None:
    card = make_card(run, "m.onnx", data_licence="CC BY-NC 4.0", store="fp16")
    info = export(
        run.model, LABELS, tmp_path / "m.onnx", metrics=run.record.metrics, data_fingerprint="f" * 64, card=card
    )
    text = to_markdown(info, card, "m")
    for part in (
        *("# m\n", "streets: 10 images for train, 3 images for val", "f" * 64, "| mean iou | 0.6000 |"),
        *("| speck | 0.2000 |", "| ghost | not present |", "CC BY-NC 4.0", "(vgg.pth): not known"),
        *("below 0.5: speck (0.20)", "not measured, since no validation image shows them: ghost", "64x96"),
        *("rounded to 16 bits", "fcnseg export run -o m.onnx --store fp16", "torch "),
    ):
        assert part in text
    assert "somewhere" not in text


def test_the_card_is_in_the_file_and_its_recipe_is_a_configuration(run: Run, tmp_path: Path) -> None:
    card = make_card(run, "m.onnx")
    export(run.model, LABELS, tmp_path / "m.onnx", card=card)
    found = read_model_info(tmp_path / "m.onnx")
    assert found.card == card
    recipe = to_markdown(found, card, "m").partition("```yaml\n")[2].partition("```")[0]
    config = from_plain(yaml.safe_load(recipe))
    assert (config.data, config.backbone, config.weights) == ("streets", "nets.py:VggLike", "vgg.pth")
    assert (config.crop, config.lr, config.epochs) == (CONFIG.crop, CONFIG.lr, CONFIG.epochs)


def test_files_without_a_card_are_read(run: Run, tmp_path: Path) -> None:
    info: ModelInfo = export(run.model, LABELS, tmp_path / "m.onnx")
    assert parse_info(dump_info(info), "a file").card is None


@pytest.mark.parametrize(("checkpoint", "named"), [("best.ckpt", "run"), ("last.ckpt", "run/last.ckpt")])
def test_a_card_tells_the_export_that_makes_its_file_again(run: Run, checkpoint: str, named: str) -> None:
    exported = replace(run, checkpoint=Path("/home/somewhere") / checkpoint)
    card = make_card(exported, "my m.onnx", data_licence="CC BY-NC 4.0", precision="int8", calibration_images=9)
    options = ["--precision", "int8", "--calibration-images", "9", "--data-licence", "CC BY-NC 4.0"]
    assert shlex.split(card.reproduce[1]) == ["fcnseg", "export", named, "-o", "my m.onnx", *options]


def test_a_run_on_the_working_folder_has_a_card_that_makes_it_again(run: Run) -> None:
    card = make_card(replace(run, record=replace(run.record, config=replace(CONFIG, data="."))), "m.onnx")
    assert card.data == card.recipe["data"] == "."
    assert shlex.split(card.reproduce[2]) == ["fcnseg", "evaluate", "m.onnx", ".", "--split", "val"]


def test_names_that_are_no_unicode_are_spelled_out_in_a_card(run: Run, tmp_path: Path) -> None:
    config = replace(CONFIG, data="/home/somewhere/stra\udcdfen", weights="vgg\udcff.pth")
    named = replace(run, record=replace(run.record, config=config))
    card = make_card(named, "m.onnx", data_licence="by J\udcf6rg")
    info = export(run.model, LABELS, tmp_path / "m.onnx", card=card)
    text = to_markdown(info, card, "m").encode().decode()
    assert card.data == "stra\\udcdfen"
    for part in ("(vgg\\udcff.pth): not known", "by J\\udcf6rg"):
        assert part in text

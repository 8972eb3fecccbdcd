import json
from dataclasses import replace
from pathlib import Path

import pytest

from fcnseg.errors import ModelFileError
from fcnseg.model_card import ModelCard, to_markdown
from fcnseg.model_file import dump_info, parse_info, read_model_info

CARD = ModelCard(
    data="streets", images={"train": 10, "val": 3}, data_licence="CC0", weights="w.pth",
    recipe={"lr": 0.01, "crop": [64, 96], "start": None, "flip": True, "backbone": "vgg11"}, epoch=3,
    class_iou={"red": 0.5, "green": None}, limits=("It is small.",), reproduce=("fcnseg train",),
)  # fmt: skip


def test_a_card_survives_the_metadata_and_tells_all_it_holds(tiny_model: Path) -> None:
    info = replace(read_model_info(tiny_model), card=CARD, data_fingerprint="f" * 64, metrics={"mean_iou": 0.25})
    again = parse_info(dump_info(info), "a file")
    assert again.card == CARD
    text = to_markdown(again, CARD, "tiny")
    for part in (
        *("streets: 10 images", "CC0", "w.pth", "lr: 0.01", "crop: [64, 96]", "start: null", "flip: true"),
        *("| red | 0.5000 |", "| green | not present |", "| mean iou | 0.2500 |", "- It is small.", "fcnseg train"),
    ):
        assert part in text


def test_a_model_that_was_not_measured_says_so(tiny_model: Path) -> None:
    info = replace(read_model_info(tiny_model), metrics={})
    assert "Not measured" in to_markdown(info, CARD, "tiny")


def test_a_card_with_an_impossible_figure_is_refused(tiny_model: Path) -> None:
    content = json.loads(dump_info(replace(read_model_info(tiny_model), card=CARD)))
    content["card"]["class_iou"]["red"] = 1.5
    with pytest.raises(ModelFileError, match=r"card\.class_iou\.red"):
        parse_info(json.dumps(content), "a file")

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from onnx import helper
from rich.console import Console

from fcnseg.errors import ArchitectureError, ModelFileError
from fcnseg.layers import Layer
from fcnseg.model_file import METADATA_KEY, dump_info
from tests.tiny_model import tiny_info
from training.commands.inspect import inspect
from training.commands.layer_table import layer_table
from training.precision import FilePrecision

BLOCK = "features.a_block_with_a_long_name.another_with_a_long_name"
LAYERS = (
    Layer("stem", "conv", "7x7, stride 2", None, (64, 112, 112), (2, 2), (7, 7), 9_408),
    Layer(f"{BLOCK}.conv", "conv", "1x7", None, (64, 112, 112), (2, 2), (7, 19), 28_672),
    Layer(f"{BLOCK}.relu()", "activation", "relu", None, (64, 112, 112), (2, 2), (7, 19), 0),
    Layer("fc", "fc", "4096 filters of 512x7x7", "Linear 25088 -> 4096", (4096, 1, 1), (32, 32), (404, 404), 102764544),
)


def run(*args: object) -> str:
    done = CliRunner().invoke(inspect, list(map(str, args)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def document(*args: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*args, "--json"))
    return found


@pytest.fixture
def model_file(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, telling layers."""
    model = onnx.load(tiny_model)
    helper.set_model_props(model, {METADATA_KEY: dump_info(dataclasses.replace(tiny_info(), layers=LAYERS))})
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_vgg16_holds_nine_tenths_of_its_parameters_in_fully_connected_layers() -> None:
    found = document("vgg16")
    assert found["parameters"] == 138_357_544
    assert found["fc_share"] == pytest.approx(123_642_856 / 138_357_544)
    assert found["receptive_field"] == 404
    assert found["output_stride"] == found["alignment"] == 32
    layers = {layer["name"]: layer for layer in found["layers"]}
    fc6 = layers["classifier.0"]
    assert (fc6["kind"], fc6["was"], fc6["operation"]) == ("fc", "Linear 25088 -> 4096", "4096 filters of 512x7x7")
    assert (fc6["shape"], fc6["stride"], fc6["receptive_field"]) == ([4096, 1, 1], [32, 32], [404, 404])
    assert layers["features.4"]["operation"] == "2x2 max, stride 2"
    assert sum(layer["share"] for layer in layers.values() if layer["kind"] == "fc") == pytest.approx(found["fc_share"])


def test_an_architecture_is_shown_as_the_heatmap_net_that_it_becomes() -> None:
    shown = run("squeezenet1_1").splitlines()
    assert any(line.split() == ["features.0", "conv", "3x3,", "stride", "2", "64x111x111", "2", "3", "1,792", "0.1%"]
               for line in shown)  # fmt: skip
    assert "│ in FC layers          │ 0 (0.0%)      │" in shown
    assert "│ parameters            │ 1,235,496     │" in shown


def test_a_net_of_ones_own_is_shown_at_its_own_size(tmp_path: Path) -> None:
    (tmp_path / "digits.py").write_text(
        "from torch import nn\n"
        "def digits():\n"
        "    return nn.Sequential(nn.Conv2d(1, 6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 12 * 14, 10))\n"
    )
    found = document(f"{tmp_path / 'digits.py'}:digits", "--input-size", "28x32")
    assert [layer["operation"] for layer in found["layers"]] == ["5x5, stride 2", "ReLU", "10 filters of 6x12x14"]
    assert found["layers"][0]["shape"] == [6, 12, 14]
    assert found["geometry"]["y"]["field"] == 5 + 2 * 11
    assert found["receptive_field"] == found["geometry"]["x"]["field"] == 5 + 2 * 13


@pytest.mark.slow
def test_auxiliary_heads_count_and_are_named() -> None:
    assert document("googlenet")["parameters"] == 13_004_888
    assert "in heads that are dropped │ 6,379,984" in run("googlenet")


def test_a_model_file_is_shown_with_what_it_says_of_itself(model_file: Path) -> None:
    shown = run(model_file)
    assert "was Linear 25088 -> 4096" in shown
    assert "102,764,544" in shown
    for value in ("heatmap of tiny", "3: red, green, blue", "mean_iou", "0.5000", f"onnx {onnx.__version__}"):
        assert value in shown
    found = document(model_file)
    assert found["parameters"] == sum(layer.parameters for layer in LAYERS)
    assert found["fc_share"] == pytest.approx(102_764_544 / found["parameters"])
    assert (found["receptive_field"], found["output_stride"], found["alignment"]) == (2, 2, 4)
    assert [layer["name"] for layer in found["layers"]] == [layer.name for layer in LAYERS]
    assert found["label_map"]["classes"][2]["name"] == "blue"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_model_file_is_shown_with_its_precision(tiny_model: Path, tmp_path: Path, precision: FilePrecision) -> None:
    model = onnx.load(tiny_model)
    helper.set_model_props(model, {METADATA_KEY: dump_info(dataclasses.replace(tiny_info(), precision=precision))})
    onnx.save(model, tmp_path / "m.onnx")
    assert re.search(rf"│ precision +│ {precision} ", run(tmp_path / "m.onnx"))


def test_a_model_file_without_layers_is_shown_without_their_table(tiny_model: Path) -> None:
    assert "heatmap of tiny" in run(tiny_model)
    found = document(tiny_model)
    assert (found["parameters"], found["fc_share"], found["layers"]) == (None, None, [])
    assert found["receptive_field"] == 2


def test_a_file_is_a_model_file_whatever_its_name(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "renamed").write_bytes(tiny_model.read_bytes())
    assert "heatmap of tiny" in run(tmp_path / "renamed")
    with pytest.raises(ModelFileError, match="does not exist"):
        run(tmp_path / "gone.onnx")


def test_what_is_neither_a_file_nor_an_architecture_is_answered_with_the_closest() -> None:
    with pytest.raises(ArchitectureError, match="resnet18"):
        run("resnett18")


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_fits_and_tells_every_layer(width: int) -> None:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(layer_table(LAYERS, console))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    for value in ("9,408", "28,672", "102,764,544", "7x19", "64x112x112", "100.0%"):
        assert any(value in line.split() for line in lines)
    assert any(line.startswith(f"{BLOCK}.conv " if width == 200 else "  conv ") for line in lines)


def test_model_files_need_no_torch(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'torchvision', 'timm', 'onnx'):\n    sys.modules[name] = None\n"
    )
    for source, code in ((model_file, 0), ("resnet18", 2)):
        done = subprocess.run(
            [sys.executable, "-m", "fcnseg", "inspect", str(source)],
            capture_output=True, text=True, check=False, timeout=180, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
    assert "which is not installed: pip install 'fcnseg[train]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1

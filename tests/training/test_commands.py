"""The training commands as a user meets them: what they refuse, in one line, and with which exit code."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from PIL import Image

import fcnseg
from fcnseg.masks import Encoding, encode
from fcnseg.types import LabelMap
from tests.training.terminal import Terminal

LABELS = LabelMap.from_names(["a", "b"])


def test_heatmap_names_the_closest_architecture(terminal: Terminal, tmp_path: Path) -> None:
    assert "mobilenet_v2" in terminal.refused("heatmap", "mobilenetv2", "-o", tmp_path / "m.onnx")


def test_heatmap_says_why_a_transformer_cannot_be_convolutional(terminal: Terminal, tmp_path: Path) -> None:
    message = terminal.refused("heatmap", "vit_b_16", "-o", tmp_path / "m.onnx")
    assert "transformer" in message
    assert "position embedding" in message


def test_heatmap_of_a_weights_file(terminal: Terminal, tmp_path: Path) -> None:
    """A classifier of three classes, with its own normalisation and labels, down to the mask."""
    torch.manual_seed(0)
    net = torchvision.models.squeezenet1_1(num_classes=3)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "labels.txt").write_text("cat\ndog\nhorse\n")
    options = ["--weights", tmp_path / "weights.pth", "--mean", "0.5", "--std", "0.2,0.3,0.4"]
    output = tmp_path / "m.onnx"
    code, stdout, stderr = terminal.run(
        "heatmap", "squeezenet1_1", *options, "--labels", tmp_path / "labels.txt", "-o", output
    )
    assert code == 0, stderr
    assert "cam: mean of the map" in stdout
    info = fcnseg.load(output, "cpu").info
    assert [c.name for c in info.label_map.classes] == ["cat", "dog", "horse"]
    assert (info.mean, info.std) == ((0.5, 0.5, 0.5), (0.2, 0.3, 0.4))
    assert info.parity[0].relative_error < 1e-4
    assert info.certificate is not None
    assert info.certificate.relative_error < 1e-5
    message = terminal.refused(
        "heatmap", "squeezenet1_1", *options[:2], "--labels", __file__, "-o", tmp_path / "n.onnx"
    )
    assert "names, but the classifier scores 3 classes" in message
    assert "do not fit" in terminal.refused("heatmap", "resnet18", *options[:2], "-o", tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()


def dataset(root: Path, mask: np.ndarray) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "images" / "one.png")
    (root / "masks" / "one.png").write_bytes(encode(mask, Encoding.PNG, LABELS))
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("one.png\n")
    (root / "classes.json").write_text('{"names": ["a", "b"], "palette_rgb": [[0, 0, 0], [255, 0, 0]]}')
    return root


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (np.zeros((4, 8), np.uint8), "one.png"),
        (np.full((8, 8), 7, np.uint8), "7"),
    ],
    ids=["another size", "an id outside the classes"],
)
def test_train_refuses_masks_that_do_not_fit(
    terminal: Terminal, tmp_path: Path, mask: np.ndarray, expected: str
) -> None:
    data = dataset(tmp_path / "data", mask)
    message = terminal.refused("train", data, "--backbone", "resnet18", "-o", tmp_path / "run")
    assert "one.png" in message
    assert expected in message
    assert not (tmp_path / "run").exists()


def test_train_refuses_a_folder_that_is_no_dataset(terminal: Terminal, tmp_path: Path) -> None:
    assert str(tmp_path) in terminal.refused("train", tmp_path, "--backbone", "resnet18", "-o", tmp_path / "run")


def test_export_refuses_what_is_no_run(terminal: Terminal, tmp_path: Path) -> None:
    assert str(tmp_path) in terminal.refused("export", tmp_path, "-o", tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_export_does_not_take_its_checkpoints_place(terminal: Terminal, tmp_path: Path, name: str) -> None:
    checkpoint = tmp_path / "run" / name
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    for run in (checkpoint, checkpoint.parent):
        message = terminal.refused("export", run, "-o", checkpoint)
        assert f"output {checkpoint} would replace an input; name another output" in message


@pytest.mark.parametrize("command", [("export", "run"), ("heatmap", "squeezenet1_1")])
@pytest.mark.parametrize("name", ["photo.jpg", "model", "model.md"])
def test_a_model_takes_the_place_of_nothing_but_a_model(
    terminal: Terminal, tmp_path: Path, command: tuple[str, str], name: str
) -> None:
    output = tmp_path / name
    output.write_bytes(b"mine")
    message = terminal.refused(*command, "-o", output)
    assert f"output {output} is to be a model file; end its name in .onnx" in message
    assert output.read_bytes() == b"mine"


@pytest.mark.parametrize("command", [("export", "run"), ("heatmap", "squeezenet1_1")])
def test_a_model_file_has_a_name_that_onnxruntime_can_open(
    terminal: Terminal, tmp_path: Path, command: tuple[str, str]
) -> None:
    message = terminal.refused(*command, "-o", tmp_path / "m\udcff.onnx")
    assert "m\\udcff.onnx' is not named in UTF-8, as onnxruntime needs; name another" in message


@pytest.mark.parametrize("option", ["--weights", "--labels"])
def test_heatmap_does_not_take_the_place_of_what_it_is_given(terminal: Terminal, tmp_path: Path, option: str) -> None:
    given = tmp_path / "given"
    given.write_bytes(b"weights")
    message = terminal.refused("heatmap", "squeezenet1_1", option, given, "-o", given)
    assert f"output {given} would replace an input; name another output" in message


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_evaluate_does_not_take_its_models_place(terminal: Terminal, tmp_path: Path, option: str) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weights")
    message = terminal.refused("evaluate", model, tmp_path, option, model)
    assert f"output {model} would replace an input; name another output" in message


def test_evaluate_refuses_an_onnx_file_that_is_not_ours(terminal: Terminal, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", np.zeros((8, 8), np.uint8))
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph, ir_version=10), tmp_path / "foreign.onnx")
    message = terminal.refused("evaluate", tmp_path / "foreign.onnx", data, "--json", tmp_path / "out.json")
    assert "foreign.onnx" in message
    assert "fcnseg" in message
    assert not (tmp_path / "out.json").exists()

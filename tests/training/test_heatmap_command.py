"""Classifiers of one's own, from a Python file down to the mask; and what the command refuses."""

from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn

import fcnseg
from fcnseg.model_file import read_model_info
from tests.training.terminal import Terminal
from training.conversion import convolutionalize
from training.net_file import build_net
from training.net_grid import derive_net_grid

NETS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, channels, filters):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(channels, filters, 5), nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.conv(x).relu())

class LeNet(nn.Module):
    def __init__(self, channels=1, classes=10):
        super().__init__()
        self.features = nn.Sequential(Block(channels, 6), Block(6, 16))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, classes))

    def forward(self, x):
        return self.head(self.features(x))

def of_colours():
    return LeNet(3)

def of_five_channels():
    return LeNet(5)

def broken():
    return LeNet("three")

class Placed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.score = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, 4)

    def forward(self, x):
        return self.score(self.conv(self.placed(x)).mean((2, 3)))

    def placed(self, x):
        return x + torch.arange(x.shape[3]) / 32

class PlacedAtOneSize(Placed):
    def placed(self, x):
        return x + torch.linspace(0, 1, x.shape[3])  # whose export is of one size

class NotInOnnx(Placed):
    def placed(self, x):
        return torch.special.i0(x)

ready = LeNet(3, 4)
word = "LeNet"
"""
OPTIONS = ("--mean", "0.4", "--std", "0.25", "--input-size", "32")


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


@pytest.mark.parametrize("name", ["LeNet", "of_colours"], ids=["grey", "colours"])
def test_a_net_of_ones_own_scores_an_image_as_its_classifier_does(terminal: Terminal, nets: Path, name: str) -> None:
    torch.manual_seed(0)
    classifier = build_net(f"{nets}:{name}").eval()
    torch.save(classifier.state_dict(), nets.with_suffix(".pth"))
    output = nets.with_suffix(".onnx")
    code, stdout, stderr = terminal.run(
        "heatmap", f"{nets}:{name}", "--weights", nets.with_suffix(".pth"), *OPTIONS, "-o", output
    )
    assert code == 0, stderr
    assert "0: no padding in the net" in stdout
    segmenter = fcnseg.load(output, "cpu")
    image = np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)
    heatmap = segmenter.segment(image).heatmap
    y, x = segmenter.info.geometry.y, segmenter.info.geometry.x
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if name == "LeNet" else image
    for top, left in ((4, 8), (12, 28)):
        # The net has no padding, so that a cell is the classifier's answer for the crop that it sees.
        row, column = ((pixel + axis.lead) // axis.stride for pixel, axis in ((top, y), (left, x)))
        assert (y.centre(row), x.centre(column)) == (top + 15.5, left + 15.5)
        crop = torch.from_numpy(pixels[top : top + 32, left : left + 32]).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            expected = classifier((crop - 0.4) / 0.25)[0].numpy()
        scale = np.abs(expected).max()
        # OpenCV rounds grey values to whole numbers.
        np.testing.assert_allclose(heatmap[:, row, column], expected, atol=scale * (0.02 if name == "LeNet" else 1e-4))
    certificate = segmenter.info.certificate
    assert certificate is not None
    assert segmenter.info.architecture == f"nets.py:{name}"  # not where it lies
    assert certificate.identity == "window"
    assert certificate.relative_error < 1e-5


@pytest.mark.parametrize(
    ("architecture", "options", "expected"),
    [
        ("nets.py:LeNet", (), "give the --mean and --std"),
        ("nets.py", OPTIONS, "which net of"),
        (
            "nets.py:Missing",
            OPTIONS,
            "defines no 'Missing'; it defines the modules Block, LeNet, Placed, PlacedAtOneSize, NotInOnnx",
        ),
        ("nets.py:broken", OPTIONS, "nets.py:broken cannot be called without arguments"),
        ("nets.py:word", OPTIONS, "cannot be called"),
        ("nets.py:of_five_channels", OPTIONS, "takes images of 5 channels; nets of 3 (RGB) or 1 (grey)"),
        ("nets.py:ready", ("--mean", "0", "--std", "1"), "cannot be run on an image of 224x224"),
        ("nets.py:PlacedAtOneSize", OPTIONS, "onnxruntime cannot run nets.py:PlacedAtOneSize at 97x131"),
        ("nets.py:NotInOnnx", OPTIONS, "nets.py:NotInOnnx cannot be exported ("),
        ("other.py:LeNet", OPTIONS, "does not exist"),
        ("nets.py:ready", ("--mean", "0", "--std", "1", "--input-size", "3x2x1"), "HEIGHTxWIDTH"),
    ],
)
def test_what_cannot_be_a_heatmap_net_is_refused_in_a_line(
    terminal: Terminal, nets: Path, architecture: str, options: tuple[str, ...], expected: str
) -> None:
    output = nets.with_suffix(".onnx")
    assert expected in terminal.refused("heatmap", nets.parent / architecture, *options, "-o", output)
    assert not output.exists()


def test_a_file_tells_of_a_net_that_knows_places_that_its_tiles_are_not_exact(terminal: Terminal, nets: Path) -> None:
    path = nets.with_name("places.onnx")
    terminal.run("heatmap", f"{nets}:Placed", *OPTIONS, "-o", path)
    info = read_model_info(path)
    assert info.certificate is not None
    assert info.global_context == info.certificate.global_context == ("the place in the image, or the image's size",)


def test_weights_of_another_class_count_say_so(terminal: Terminal, nets: Path) -> None:
    torch.save(build_net(f"{nets}:ready").state_dict(), nets.with_suffix(".pth"))
    message = terminal.refused(
        "heatmap",
        f"{nets}:of_colours",
        "--weights",
        nets.with_suffix(".pth"),
        *OPTIONS,
        "-o",
        nets.with_suffix(".onnx"),
    )
    assert "score 4 classes where LeNet scores 10" in message


def test_labels_are_utf_8_with_or_without_a_mark_before_them(terminal: Terminal, nets: Path) -> None:
    labels, output = nets.with_name("labels.txt"), nets.with_suffix(".onnx")
    text = "\n".join(["caf\u00e9", *"123456789"])
    command = ("heatmap", f"{nets}:of_colours", *OPTIONS, "--labels", labels, "-o", output)
    labels.write_text(text, "latin-1")
    assert "labels.txt is not UTF-8 text (" in terminal.refused(*command)
    for encoding in ("utf-8", "utf-8-sig"):
        labels.write_text(text, encoding)
        code, _, stderr = terminal.run(*command)
        assert code == 0, stderr
        assert read_model_info(output).label_map.classes[0].name == "caf\u00e9"


def test_a_file_that_fails_says_how(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_that_name")
    message = terminal.refused("heatmap", tmp_path / "bad.py", *OPTIONS, "-o", tmp_path / "m.onnx")
    assert "bad.py cannot be run: ModuleNotFoundError" in message


def test_onnxruntime_scores_a_converted_classifier_as_pytorch_does(terminal: Terminal, tmp_path: Path) -> None:
    """At sizes that are no multiple of anything, against the classifier's own layers and a padding made by NumPy."""
    torch.manual_seed(0)
    classifier = torchvision.models.squeezenet1_1(num_classes=12).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    options = ("--weights", tmp_path / "weights.pth", "--mean", "0.5", "--std", "0.5")
    code, _, stderr = terminal.run("heatmap", "squeezenet1_1", *options, "-o", tmp_path / "m.onnx")
    assert code == 0, stderr
    net = nn.Sequential(classifier.features, classifier.classifier[:3])  # without its pooling
    geometry = fcnseg.load(tmp_path / "m.onnx", "cpu").info.geometry
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for height, width in ((97, 131), (224, 300)):
        image = np.random.default_rng(height).integers(0, 256, (1, height, width, 3), np.uint8)
        (heatmap,) = session.run(["heatmap"], {"image": image})
        padding = [
            (axis.lead, axis.padded(size) - axis.lead - size)
            for axis, size in ((geometry.y, height), (geometry.x, width))
        ]
        padded = np.pad(image, ((0, 0), *padding, (0, 0)), mode="edge").astype(np.float32) / 255
        with torch.no_grad():
            expected = net(torch.from_numpy((padded - 0.5) / 0.5).permute(0, 3, 1, 2)).numpy()
        assert heatmap.shape == expected.shape
        assert np.abs(heatmap - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_geometry_of_a_non_square_net_is_kept_by_axis(nets: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, (3, 5), (1, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 70 * 4, 7))
    converted, certificate = convolutionalize(net, (72, 11))
    assert certificate.receptive_field == (72, 11)
    assert certificate.output_stride == (1, 2)
    assert derive_net_grid(converted, (72, 11)).minimum == (72, 12)

"""Nets for tensor cores compute what they were made of."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fcnseg.types import LabelMap
from tests.training.small_nets import Residual, seeded
from tests.training.test_model import fcn_model
from training.export import export
from training.model import build_model
from training.same_padding import PaddedConv2d
from training.tensor_cores import FilledConv2d, UnfoldedConv2d, _pool_before_relu, fit_tensor_cores


@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    more=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    bias=st.booleans(),
)
def test_a_convolution_is_one_product_of_matrices(
    kernel: tuple[int, int], padding: tuple[int, int], channels: tuple[int, int], more: tuple[int, int], *, bias: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, kernel, padding=padding, bias=bias).double()
    features = torch.randn(2, channels[0], kernel[0] + more[0], kernel[1] + more[1], dtype=torch.float64)
    torch.testing.assert_close(UnfoldedConv2d(conv)(features), conv(features))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(1, 4, 7, stride=2, padding=3, bias=False),
        nn.Conv2d(4, 5, (3, 1), dilation=2, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_channels_of_zeros_change_nothing(conv: nn.Conv2d) -> None:
    features = torch.randn(2, conv.in_channels, 19, 23)
    filled = FilledConv2d(conv)
    assert filled.weight.shape[1] == 8
    torch.testing.assert_close(filled(features), conv(features))


def test_a_padding_that_differs_from_side_to_side_is_kept() -> None:
    conv = PaddedConv2d(3, 4, 3, stride=2)
    conv.sides = (0, 1, 2, 0)
    features = torch.randn(1, 3, 10, 12)
    torch.testing.assert_close(FilledConv2d(conv)(features), conv(features))


class Net(nn.Module):
    """A little of everything: what is replaced, and what looks like it and is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.tap = nn.ReLU()
        self.pool_again = nn.MaxPool2d(3, 2, 1)
        self.depthwise = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.strided = nn.Conv2d(16, 16, 7, stride=2, padding=3)
        self.fc = nn.Conv2d(16, 32, 7)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        first = self.pool(self.relu(self.first(image)))
        tapped = self.tap(self.second(first))  # read twice, so its order stays
        deep = self.fc(self.strided(self.depthwise(self.pool_again(tapped))))
        return tapped, deep


def test_a_net_computes_the_same_in_another_form() -> None:
    torch.manual_seed(1)
    traced = fx.symbolic_trace(Net()).double().eval()
    fitted = copy.deepcopy(traced)
    fit_tensor_cores(fitted)
    image = torch.randn(2, 3, 70, 66, dtype=torch.float64)
    for found, expected in zip(fitted(image), traced(image), strict=True):
        torch.testing.assert_close(found, expected)
    kinds = {name: type(module) for name, module in fitted.named_children()}
    assert kinds["first"] is FilledConv2d
    assert kinds["fc"] is UnfoldedConv2d
    assert kinds["depthwise"] is kinds["strided"] is kinds["second"] is nn.Conv2d
    order = [node.target for node in fitted.graph.nodes if node.op == "call_module"]
    assert order[:5] == ["first", "pool", "relu", "second", "tap"]


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True)])
def test_relu_behind_max_pooling_gives_the_same_to_the_bit(pool: nn.Module) -> None:
    traced = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), pool))
    fitted = copy.deepcopy(traced)
    _pool_before_relu(fitted)
    assert [node.target for node in fitted.graph.nodes if node.op == "call_module"] == ["0", "2", "1"]
    features = torch.randn(2, 3, 13, 15)
    assert torch.equal(fitted(features), traced(features))


class ReadBefore(nn.Module):
    """Its features are read before ReLU, which rectifies them in place, and behind its pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.conv(image)
        return features + self.pool(self.relu(features))


def test_what_is_rectified_in_place_for_others_stays_so() -> None:
    traced = fx.symbolic_trace(ReadBefore())
    fitted = copy.deepcopy(traced)
    _pool_before_relu(fitted)
    features = torch.randn(2, 3, 13, 15)
    assert torch.equal(fitted(features), traced(features))


def test_a_large_kernel_on_the_image_stays_a_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 7, padding=3), nn.Conv2d(16, 16, 7))
    fit_tensor_cores(net)
    assert [type(layer) for layer in net] == [FilledConv2d, UnfoldedConv2d]


def test_classes_and_confidences_are_those_of_other_files() -> None:
    model = fcn_model(seeded(Residual), (64, 64))
    other = copy.deepcopy(model)
    other.on_tensor_cores = True
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 97, 61, 3), np.uint8))
    with torch.no_grad():
        (classes, heatmap, confidence), found = model(image), other(image)
        best = model.pixel_scores(image).topk(2, dim=1).values
    assert torch.equal(found[1], heatmap)
    clear = best[:, 0] - best[:, 1] > 1e-4
    assert clear.float().mean() > 0.9
    assert torch.equal(found[0][clear], classes[clear])
    assert (found[2].int() - confidence.int()).abs().max() <= 1


@pytest.mark.slow
def test_vgg_in_16_bits_has_no_large_convolution(tmp_path: Path) -> None:
    model = build_model("vgg11", "fcn32s", 5, pretrained=False)
    path = tmp_path / "vgg.onnx"
    export(model, LabelMap.from_names([f"class {i}" for i in range(5)]), path, precision="fp16")  # proves it
    graph = onnx.load(path).graph
    sides = [max(a.ints) for n in graph.node if n.op_type == "Conv" for a in n.attribute if a.name == "kernel_shape"]
    assert max(sides) == 3
    operators = [node.op_type for node in graph.node]
    assert "MaxPool" not in [operators[i + 1] for i in range(len(operators) - 1) if operators[i] == "Relu"]

"""Classifiers as people have them: on another device, of another type, wrapped, or with layers of odd forms."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fcnseg.errors import ArchitectureError
from tests.training.small_nets import CLASSES, TAILS, LeNet, conv, seeded
from training.conversion import TOLERANCE, convolutionalize, dense_trunk, prepared_copy
from training.fcn import build_fcn
from training.layers import derive_layers
from training.zoo import load_classifier

SIZE = (64, 64)


@pytest.mark.parametrize("tail", TAILS)
def test_a_net_is_converted_where_its_weights_are(tail: str) -> None:
    make, size = TAILS[tail]
    trunk = dense_trunk(prepared_copy(seeded(make).to("meta"), size), size, "auto")  # as CUDA is no CPU
    assert {weights.device.type for weights in trunk.net.parameters()} == {"meta"}
    assert {values.device.type for values in trunk.net.buffers()} <= {"meta"}
    derive_layers(trunk.net)


def test_a_net_becomes_an_fcn_where_its_weights_are() -> None:
    net = nn.Sequential(conv(3, 8, stride=4), conv(8, 8, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = nn.Sequential(net, nn.Linear(8, CLASSES)).to("meta")
    fcn = build_fcn(classifier, "fcn8s", 3, SIZE)
    assert {weights.device.type for weights in fcn.parameters()} == {"meta"}
    assert fcn(torch.empty(1, 3, *SIZE, device="meta")).shape == (1, 3, 8, 8)


def test_a_net_of_64_bit_floats_is_converted_as_it_is() -> None:
    net, certificate = convolutionalize(seeded(LeNet).double(), (32, 36))
    assert certificate.relative_error < 1e-12
    assert {weights.dtype for weights in net.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (LeNet().half(), "features.0.weight of LeNet is of float16, too coarse to prove"),
        (LeNet().to("meta"), "features.0.weight of LeNet is on the meta device"),
        (nn.Sequential(conv(3, 8), nn.Flatten(), nn.LazyLinear(CLASSES)), "2.weight of Sequential has no size before"),
    ],
    ids=["float16", "meta", "lazy"],
)
def test_weights_that_cannot_be_proved_are_told(net: nn.Module, reason: str) -> None:
    with pytest.raises(ArchitectureError, match=reason):
        convolutionalize(net, (32, 36))


def test_a_net_of_ones_own_of_16_bit_floats_is_widened(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from tests.training.small_nets import LeNet\nnet = LeNet().half()\n")
    classifier = load_classifier(f"{tmp_path / 'own.py'}:net", input_size=(32, 36))
    assert convolutionalize(classifier.net, classifier.input_size).certificate.relative_error < TOLERANCE


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("layer", ["features.0", "fc.0", "fc.3"])
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        pruned,
    ],
)
def test_layers_with_computed_weights_become_plain_ones(change: Callable[[nn.Module], object], layer: str) -> None:
    model = LeNet()
    change(model.get_submodule(layer))
    model(torch.randn(2, 3, 32, 36))  # spectral norms are estimated in training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    net, certificate = convolutionalize(model, (32, 36))
    assert certificate.relative_error < TOLERANCE
    names = {name for name, _ in LeNet().named_parameters()}
    assert {name for name, _ in net.named_parameters()} == names

    copy.deepcopy(net).load_state_dict(net.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()(torch.randn(2, 3, 32, 36))  # it computes as before


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_a_net_with_computed_weights_becomes_an_fcn_of_its_own() -> None:
    net = nn.Sequential(conv(3, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    nn.utils.weight_norm(net[0][0])
    fcn = build_fcn(net, "fcn8s", 3, SIZE)
    kept = net[0][0].weight_v.clone()
    nn.init.zeros_(fcn.trunk.get_parameter("0.0.weight"))
    assert torch.equal(net[0][0].weight_v, kept)

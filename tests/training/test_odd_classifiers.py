"""Classifiers as people have them: on another device, of another type, wrapped, or with layers of odd forms."""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.layers import ScaledStdConv2dSame, StdConv2dSame, create_conv2d, create_pool2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from fcnseg.errors import ArchitectureError, WeightsError
from tests.training.small_nets import CLASSES, TAILS, LeNet, conv, seeded
from training.conversion import TOLERANCE, Conversion, convolutionalize, dense_trunk, prepared_copy
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


class ChangesInPlace(nn.Module):
    """Changes maps by statements whose values nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = conv(3, 8, stride=4), conv(8, 8), nn.Linear(8, CLASSES)
        self.activation = nn.ReLU(inplace=True)
        self.gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.activation(x)
        branch = self.second(x)
        branch.mul_(self.gain)
        F.relu(branch, inplace=True)
        x = x + branch
        torch.relu_(x)
        return self.fc(x.mean((2, 3)))


def test_changes_in_place_are_followed() -> None:
    assert convolutionalize(seeded(ChangesInPlace), SIZE).certificate.relative_error < TOLERANCE


class ChannelsLast(nn.Module):
    """Normalises and pools with the channels of a place together."""

    def __init__(self, *, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.stem, self.norm, self.fc = conv(3, 8, stride=4), nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        return self.fc(x.amax(dim=(1, 2)) if self.maximum else x.mean((1, -2)))


@pytest.mark.parametrize("maximum", [False, True])
def test_maps_may_be_pooled_with_their_channels_last(*, maximum: bool) -> None:
    _, certificate = convolutionalize(seeded(lambda: ChannelsLast(maximum=maximum)), SIZE)
    assert certificate.identity == ("window" if maximum else "cam")
    assert certificate.relative_error < TOLERANCE


class Parting(nn.Module):
    """Scores the pooled map by two layers, as nets do that were taught by another, and scales their mean."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 8, stride=4), nn.BatchNorm1d(8)
        self.first, self.second = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(torch.randn(1, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        return (self.first(self.norm(x)) + self.second(x)) / 2 * self.scale.exp() - self.shift


@pytest.mark.parametrize("scale", [torch.tensor(0.7), torch.rand(CLASSES)], ids=["one", "each"])
def test_a_tail_may_part_and_meet_again(scale: Tensor) -> None:
    _, certificate = convolutionalize(seeded(lambda: Parting(scale)), SIZE)
    assert (certificate.identity, certificate.relative_error < TOLERANCE) == ("cam", True)


@pytest.mark.parametrize("squares", [False, True])
def test_a_tail_whose_parts_are_multiplied_is_no_mean_of_cells(*, squares: bool) -> None:
    class Gated(Parting):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).mean((2, 3))
            return self.first(x * x) if squares else self.first(x) * self.second(x)

    _, certificate = convolutionalize(seeded(lambda: Gated(torch.tensor(1.0))), SIZE)
    assert (certificate.identity, certificate.relative_error < TOLERANCE) == ("window", True)


SAME: list[Callable[[], nn.Module]] = [
    lambda: create_conv2d(8, 8, 3, stride=2, padding="same"),
    lambda: ScaledStdConv2dSame(8, 8, 3, stride=2, padding="same"),
    lambda: StdConv2dSame(8, 8, 3, stride=2, padding="same"),
    lambda: create_pool2d("avg", 3, 2, padding="same"),
    lambda: create_pool2d("max", 3, 2, padding="same"),
]


@pytest.mark.parametrize("make", SAME, ids=["conv", "scaled", "standardised", "avg", "max"])
def test_padding_that_depends_on_the_size_becomes_that_of_the_native_one(make: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(conv(3, 8), make(), conv(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    dense, certificate = convolutionalize(seeded(lambda: net), (65, 65))  # one pixel before, and one behind
    assert (certificate.output_stride, certificate.offset) == ((2, 2), (0, 0))
    odd, even = (dense(torch.ones(1, 3, size, size)) for size in (65, 66))
    assert torch.equal(odd[..., :-4, :-4], even[..., : odd.shape[2] - 4, : odd.shape[3] - 4])


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


class Headed(nn.Module):
    """Features of stride 8 and 16 channels, and a head that is a function of them and of the layers `linears`."""

    def __init__(self, head: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8, stride=4), conv(8, 16, stride=2))
        self.layers = nn.ModuleDict({"score": nn.Linear(16, CLASSES), **layers})
        self._head = head

    def forward(self, x: Tensor) -> Tensor:
        return self._head(self.features(x), **self.layers)


def check(head: Callable[..., Tensor], **layers: nn.Module) -> Conversion:
    """Convert a net, and compare it with itself on images that it was not certified on."""
    model = seeded(lambda: Headed(head, **layers))
    found = convolutionalize(model, SIZE)
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        torch.testing.assert_close(found.net(images).mean((2, 3)), model(images), rtol=1e-4, atol=1e-5)
    return found


def called_twice(x: Tensor, score: nn.Module, hidden: nn.Module) -> Tensor:
    return score(hidden(hidden(x.mean((2, 3))).relu()).relu())


def called_on_a_grid_and_on_cells(x: Tensor, score: nn.Module, hidden: nn.Module) -> Tensor:
    return score(hidden(hidden(F.adaptive_avg_pool2d(x, 2).flatten(1)).relu()).relu())


def called_in_the_features_too(x: Tensor, score: nn.Module, hidden: nn.Module) -> Tensor:
    gates = hidden(x.mean((2, 3))).sigmoid()[:, :, None, None]
    return score(hidden((x * gates).mean((2, 3))).relu())


def test_a_linear_layer_that_is_called_twice_is_one_convolution() -> None:
    hidden = nn.Linear(16, 16)
    net, certificate = check(called_twice, hidden=hidden)
    assert certificate.parameters_after == certificate.parameters_before
    assert certificate.fc_parameters == 17 * (16 + CLASSES)
    assert net.get_parameter("layers.hidden.weight").shape == (16, 16, 1, 1)


def test_a_linear_layer_that_is_called_on_a_grid_and_on_cells_is_two_convolutions() -> None:
    net, _ = check(called_on_a_grid_and_on_cells, hidden=nn.Linear(64, 64), score=nn.Linear(64, CLASSES))
    shapes = {tuple(weights.shape) for name, weights in net.named_parameters() if "hidden" in name and weights.ndim > 1}
    assert shapes == {(64, 16, 2, 2), (64, 64, 1, 1)}


def test_a_linear_layer_that_the_features_call_too_stays_there() -> None:
    net, _ = check(called_in_the_features_too, hidden=nn.Linear(16, 16))
    assert isinstance(net.get_submodule("layers.hidden"), nn.Linear)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(16, bias=False),
        nn.LayerNorm(16, elementwise_affine=False),
        nn.RMSNorm(16),
        nn.RMSNorm(16, eps=0.1),
        nn.RMSNorm(16, elementwise_affine=False),
    ],
)
def test_heads_normalise_without_bias(norm: nn.Module) -> None:
    found = check(lambda x, score, norm: score(norm(x.mean((2, 3)))), norm=norm)
    assert found.certificate.identity == "window"


def test_a_layer_that_takes_no_map_is_told() -> None:
    with pytest.raises(ArchitectureError, match="behind its feature map that does not take a map .dropout1d: Exp"):
        check(lambda x, score, drop: score(drop(x.mean((2, 3)))), drop=nn.Dropout1d())


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda net: torch.compile(nn.DataParallel(net))])
def test_a_wrapped_net_is_the_net(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, wrapped = (convolutionalize(net, (32, 36)) for net in (seeded(LeNet), wrap(seeded(LeNet))))
    assert wrapped.certificate == plain.certificate
    assert list(wrapped.net.state_dict()) == list(plain.net.state_dict())


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_script_is_refused_with_the_reason() -> None:
    with pytest.raises(ArchitectureError, match="the net is TorchScript"):
        convolutionalize(torch.jit.script(seeded(LeNet)), (32, 36))


class Attention(nn.Identity):
    """As decoders have where attention was not asked for."""


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (nn.Sequential(conv(3, 8), Attention()), r"is a tensor of 1 x 8 x 32 x 36, as segmentation nets do"),
        (nn.Sequential(conv(3, 8), nn.Flatten(2)), r"is a tensor of 1 x 8 x 1152$"),
    ],
)
def test_a_net_that_answers_with_no_logits_is_told_what_it_answers_with(net: nn.Module, told: str) -> None:
    with pytest.raises(ArchitectureError, match=told):
        convolutionalize(net, (32, 36))


def save_lenet(folder: Path, prefixes: list[str], **others: Tensor) -> Path:
    state = {prefix + name: value for prefix in prefixes for name, value in seeded(LeNet).state_dict().items()}
    torch.save({"state_dict": {**state, **others}, "epoch": 3}, folder / "weights.ckpt")
    (folder / "own.py").write_text("from tests.training.small_nets import LeNet\n\ndef net():\n    return LeNet()\n")
    return folder / "weights.ckpt"


@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod.", "module.", "module._orig_mod.", "ema.net."])
def test_weights_are_found_below_what_wrappers_put_before_their_names(prefix: str, tmp_path: Path) -> None:
    weights = save_lenet(tmp_path, [prefix], **({"criterion.weight": torch.ones(7)} if prefix else {}))
    classifier = load_classifier(f"{tmp_path / 'own.py'}:net", weights=weights, input_size=(32, 36))
    expected = seeded(LeNet).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in classifier.net.state_dict().items())


def test_weights_of_two_nets_are_refused(tmp_path: Path) -> None:
    weights = save_lenet(tmp_path, ["model.", "ema."])
    with pytest.raises(WeightsError, match=r"hold the net 2 times, below model. and ema.; give a file with one"):
        load_classifier(f"{tmp_path / 'own.py'}:net", weights=weights, input_size=(32, 36))


def test_weights_of_another_net_below_a_prefix_are_refused(tmp_path: Path) -> None:
    weights = save_lenet(tmp_path, ["model."], **{"model.more.weight": torch.ones(2)})
    with pytest.raises(WeightsError, match="1 unexpected, first more.weight"):
        load_classifier(f"{tmp_path / 'own.py'}:net", weights=weights, input_size=(32, 36))


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_weights_are_found_in_what_training_scripts_leave(key: str, tmp_path: Path) -> None:
    """torchvision's keep them as `model`, timm's as `state_dict`, and both keep their options beside them."""
    weights, expected = save_lenet(tmp_path, [""]), seeded(LeNet).state_dict()
    torch.save({key: expected, "args": argparse.Namespace(lr=0.1, milestones=[30, 60])}, weights)
    classifier = load_classifier(f"{tmp_path / 'own.py'}:net", weights=weights, input_size=(32, 36))
    assert all(torch.equal(value, expected[name]) for name, value in classifier.net.state_dict().items())


GLOBAL_MAXIMA: dict[str, Callable[[Tensor], Tensor]] = {
    "amax": lambda x: x.amax((2, 3)),
    "amax that keeps axes": lambda x: torch.amax(x, (-2, -1), keepdim=True).flatten(1),
    "amax in two steps": lambda x: x.amax(3).amax(2),
    "amax of a flat map": lambda x: x.flatten(2).amax(-1),
    "max in two steps": lambda x: x.max(3)[0].max(dim=2)[0],
    "max of a flat map": lambda x: torch.max(x.flatten(2), 2).values,
    "max of a view": lambda x: torch.max(x.view(x.size(0), x.size(1), -1), dim=-1)[0],
    "adaptive": lambda x: F.adaptive_max_pool2d(x, 1).flatten(1),
}


@pytest.mark.parametrize("pool", GLOBAL_MAXIMA)
def test_a_global_maximum_however_written_becomes_a_window(pool: str) -> None:
    found = check(lambda x, score: score(GLOBAL_MAXIMA[pool](x)))
    assert found.certificate.identity == "window"
    assert found.net(torch.zeros(1, 3, 72, 80)).shape == (1, CLASSES, 2, 3)


def test_a_mean_of_maxima_is_no_pooling_of_one_kind() -> None:
    with pytest.raises(ArchitectureError, match="no tail that can become convolutional"):
        check(lambda x, score: score(x.amax(3).mean(2)))


def test_a_maximum_whose_place_is_asked_for_stays() -> None:
    def head(x: Tensor, score: nn.Module) -> Tensor:
        values, places = x.max(1, keepdim=True)
        return score((x * values + 0 * places).mean((2, 3)))

    assert check(head).certificate.identity == "cam"


LAST_STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "log_softmax, by name": lambda x: F.log_softmax(x, dim=-1),
    "softmax, by place": lambda x: torch.softmax(x, -1),
    "softmax, a method": lambda x: x.softmax(-1),
    "softmax over the channels": lambda x: x.softmax(1),
    "normalize, by place": lambda x: F.normalize(x, 2.0, -1),
    "normalize": F.normalize,
}


@pytest.mark.parametrize("step", LAST_STEPS)
def test_a_function_of_the_logits_becomes_one_of_every_cells(step: str) -> None:
    found = check(lambda x, score: LAST_STEPS[step](score(x.mean((2, 3)))))
    assert found.certificate.identity == "window"


class Optional(nn.Module):
    """A forward that takes more than the image, where it is given more."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.score = conv(3, 8, stride=4), nn.Linear(8, CLASSES)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, return_features: bool = False, pool: str = "mean"
    ) -> Tensor | tuple[Tensor, Tensor]:
        features = self.features(x)
        if mask is not None:
            features = features * mask
        logits = self.score(features.mean((2, 3)) if pool == "mean" else features.amax((2, 3)))
        return (logits, features) if return_features else logits


def test_what_a_forward_takes_beside_the_image_has_its_defaults() -> None:
    model = seeded(Optional)
    net, certificate = convolutionalize(model, SIZE)
    assert certificate.identity == "cam"
    assert [node.name for node in net.graph.nodes if node.op == "placeholder"] == ["x"]
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 72, 80)).shape == (1, CLASSES, 18, 20)


class DefinedLate(nn.Module):
    """A net whose convolution of the image is defined behind another one, of `channels`."""

    def __init__(self, channels: int, image: int) -> None:
        super().__init__()
        self.channels = channels
        self.gate = nn.Conv2d(channels, 1, 3, padding=1)
        self.features = nn.Sequential(conv(image, 8, stride=4), conv(8, 8, stride=2))
        self.score = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.score((x * self.gate(x[:, : self.channels]).sigmoid()).mean((2, 3)))


@pytest.mark.parametrize(("channels", "image"), [(2, 3), (1, 3), (8, 3), (8, 1)])
def test_the_channels_of_the_image_are_those_that_the_net_takes(channels: int, image: int) -> None:
    model = seeded(lambda: DefinedLate(channels, image))
    net = convolutionalize(model, SIZE).net
    assert net(torch.zeros(1, image, 72, 80)).shape == (1, CLASSES, 9, 10)
    assert build_fcn(model, "fcn8s", 3, SIZE)(torch.zeros(1, image, 72, 80)).shape == (1, 3, 9, 10)

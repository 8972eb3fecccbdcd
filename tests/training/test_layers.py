import pytest
import timm
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fcnseg.layers import Layer, count_parameters
from tests.training.small_nets import CLASSES, TAILS, LeNet, Pooled, Residual, Squeezed, SqueezeExcited, conv, seeded
from training.conversion import convolutionalize
from training.fcn import build_fcn
from training.layers import derive_layers


def layers_of(net: nn.Module, size: tuple[int, int] = (64, 64)) -> dict[str, Layer]:
    return {layer.name: layer for layer in derive_layers(convolutionalize(net.eval(), size).net)}


@pytest.mark.parametrize("name", TAILS)
def test_the_layers_hold_the_nets_parameters_and_end_in_its_answer(name: str) -> None:
    make, size = TAILS[name]
    net, certificate = convolutionalize(seeded(make), size)
    layers = derive_layers(net)
    assert count_parameters(layers) == certificate.parameters_after
    assert count_parameters(layers, "fc") == certificate.fc_parameters
    last = layers[-1]
    with torch.no_grad():
        assert last.shape == tuple(net(torch.zeros(1, 3, *size)).shape[1:])
    assert last.stride == certificate.output_stride
    assert last.receptive_field == certificate.receptive_field


@pytest.mark.parametrize("name", TAILS)
def test_shapes_are_those_of_the_running_net(name: str) -> None:
    make, size = TAILS[name]
    net = convolutionalize(seeded(make), size).net
    ran: dict[str, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def call_module(self, target: str, args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
            output = super().call_module(target, args, kwargs)
            ran[target] = tuple(output.shape[1:])
            return output

    with torch.no_grad():
        Recorder(net).run(torch.zeros(1, 3, *size))
    layers = [layer for layer in derive_layers(net) if not layer.name.endswith("()")]
    assert len(layers) >= 4
    assert {layer.name: layer.shape for layer in layers}.items() <= ran.items()


def test_a_fully_connected_layer_tells_what_it_was_and_what_it_becomes() -> None:
    layers = layers_of(seeded(LeNet), (32, 36))
    first, last = layers["fc.0"], layers["fc.3"]
    assert (first.kind, first.was, first.operation) == ("fc", "Linear 300 -> 20", "20 filters of 10x5x6")
    assert (last.kind, last.was, last.operation) == ("fc", f"Linear 20 -> {CLASSES}", f"{CLASSES} filters of 20x1x1")
    assert first.parameters == 300 * 20 + 20
    assert "fc.2" not in layers  # dropout does nothing here


def test_a_net_without_linear_layers_has_no_fully_connected_ones() -> None:
    assert {layer.kind for layer in layers_of(seeded(Squeezed)).values()} == {"conv", "norm", "activation", "pool"}


def test_strides_and_receptive_fields_grow_along_the_net() -> None:
    layers = layers_of(seeded(LeNet), (32, 36))
    fields = {name: (layer.stride, layer.receptive_field) for name, layer in layers.items()}
    assert fields["features.0"] == ((1, 1), (5, 5))
    assert fields["features.2"] == ((2, 2), (6, 6))
    assert fields["features.3"] == ((2, 2), (14, 14))
    assert fields["features.5"] == ((4, 4), (16, 16))
    assert fields["fc.0"] == ((4, 4), (16 + 4 * 4, 16 + 4 * 5))


def test_functions_are_layers_too() -> None:
    layers = layers_of(seeded(Residual))
    assert layers["max_pool2d()"].operation == "3x3 max, stride 2"
    assert layers["max_pool2d()"].kind == "pool"
    assert layers["relu()"].kind == "activation"
    assert layers["shortcut"].operation == "1x1, stride 2"


def test_a_pooling_of_the_whole_map_has_no_grid() -> None:
    squeeze = layers_of(seeded(SqueezeExcited))["squeeze"]
    assert (squeeze.operation, squeeze.shape) == ("mean of the whole map", (8, 1, 1))
    assert squeeze.stride is squeeze.receptive_field is None


def test_a_sliding_window_is_a_pooling() -> None:
    window = layers_of(seeded(SqueezeExcited))["window"]
    assert (window.kind, window.operation) == ("pool", "16x16 mean, stride 1")


class Shared(nn.Module):
    """One convolution that runs twice, and a scale that no module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = conv(3, 8, stride=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.again(self.again(self.stem(x))) * self.scale, 1).flatten(1))


def test_parameters_that_are_used_twice_count_once() -> None:
    first, second = [
        layer for layer in derive_layers(convolutionalize(seeded(Shared), (64, 64)).net) if layer.name == "again"
    ]
    assert first.operation == second.operation == "3x3 depthwise"
    assert (first.parameters, second.parameters) == (80, 0)
    assert (first.receptive_field, second.receptive_field) == ((7, 7), (11, 11))


def test_a_parameter_of_no_layer_has_a_line_of_its_own() -> None:
    scale = layers_of(seeded(Shared))["scale"]
    assert (scale.kind, scale.shape, scale.parameters, scale.stride) == ("other", (8, 1, 1), 8, None)


class Enlarging(nn.Module):
    """A map finer than the image, then a coarse one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.enlarge = nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 4, 2, 2)
        self.reduce = nn.Conv2d(4, 8, 16, 16)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.reduce(self.enlarge(self.stem(x))).mean((2, 3)))


def test_a_map_finer_than_the_image_has_no_stride_in_pixels() -> None:
    layers = layers_of(seeded(Enlarging))
    enlarge = layers["enlarge"]
    assert (enlarge.operation, enlarge.shape) == ("2x2 transposed, stride 2", (4, 128, 128))
    assert enlarge.stride is None
    assert layers["reduce"].stride == (8, 8)


class ChannelsLast(nn.Module):
    """A block that runs on (N, H, W, C), as ConvNeXt's does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8))
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mlp(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (96, 32)])
def test_shapes_begin_with_the_channels_wherever_the_net_keeps_them(size: tuple[int, int]) -> None:
    layers = layers_of(seeded(ChannelsLast), size)
    h, w = size[0] // 4, size[1] // 4
    shapes = {name: layer.shape for name, layer in layers.items()}
    assert shapes == {
        "stem": (8, h, w), "norm": (8, h, w), "mlp.0": (24, h, w), "mlp.1": (24, h, w), "mlp.2": (8, h, w),
        "fc": (CLASSES, h, w),
    }  # fmt: skip
    assert (layers["mlp.0"].kind, layers["mlp.0"].operation) == ("conv", "1x1 (Linear at every cell)")


def test_a_normalisation_that_carries_its_activation_tells_both() -> None:
    layers = layers_of(Pooled(nn.Linear(16, CLASSES)))
    assert layers["features.0.1"].operation == "BatchNorm2d"
    carrying = Pooled(nn.Linear(16, CLASSES))
    carrying.features[0][1] = timm.layers.BatchNormAct2d(8)
    norm = layers_of(carrying)["features.0.1"]
    assert (norm.kind, norm.operation, norm.parameters) == ("norm", "BatchNormAct2d + ReLU", 16)


def test_score_layers_see_what_their_maps_see() -> None:
    fcn = build_fcn(seeded(Residual), "fcn8s", 5, (64, 64))
    layers = derive_layers(fcn)
    assert count_parameters(layers) == sum(parameter.numel() for parameter in fcn.parameters())
    coarse, fine = layers[-2:]
    assert (coarse.name, coarse.kind, coarse.shape, coarse.stride) == ("scores.0", "conv", (5, 4, 4), (16, 16))
    assert (fine.name, fine.kind, fine.shape, fine.stride) == ("scores.1", "conv", (5, 8, 8), (8, 8))
    assert coarse.receptive_field == layers[-3].receptive_field


def test_a_net_that_is_no_graph_is_refused() -> None:
    with pytest.raises(TypeError, match="Pooled"):
        derive_layers(Pooled(nn.Linear(16, CLASSES)))

"""Derived grids against grids measured on the running net.

A NaN in a pixel column reaches exactly the cells that depend on it: it survives multiplication by zero weights, ReLU
and max pooling alike.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcnseg.errors import ArchitectureError
from tests.training.small_nets import Residual, Squeezed, SqueezeExcited, seeded
from training.conversion import convolutionalize
from training.grid import AxisGrid, Grid
from training.grid_tracer import trace_grids
from training.net_grid import derive_net_grid
from training.zoo import load_classifier


def reached_cells(net: nn.Module, height: int, width: int, column: int) -> set[int]:
    image = torch.zeros(1, 3, height, width)
    image[..., column] = math.nan
    with torch.no_grad():
        return set(torch.nonzero(net(image).isnan()[0].any(0).any(0)).flatten().tolist())


def check_against_nan(net: nn.Module, height: int, width: int) -> None:
    """The middle cell depends on the derived interval's ends, and on nothing beyond them."""
    tracer, output = trace_grids(net, height, width)
    grid = tracer.grid(output)
    assert grid is not None
    cell = output.shape[3] // 2
    first, last = int(grid.x.first + grid.x.stride * cell), int(grid.x.last + grid.x.stride * cell)
    assert first > 0, "the image is too narrow for the test"
    assert last < width - 1, "the image is too narrow for the test"
    assert cell in reached_cells(net, height, width, first)
    assert cell in reached_cells(net, height, width, last)
    assert cell not in reached_cells(net, height, width, first - 1)
    assert cell not in reached_cells(net, height, width, last + 1)


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1", "timm/tf_efficientnet_lite0"])
def test_derived_grid_is_the_measured_one(name: str) -> None:
    classifier = load_classifier(name, pretrained=False)
    check_against_nan(convolutionalize(classifier.net, classifier.input_size).net, 64, 1152)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width"),
    [("vgg16", 1024), ("alexnet", 896), ("resnet50", 1216), ("googlenet", 1152), ("densenet121", 2560)],
)
def test_derived_grid_is_the_measured_one_on_more_families(name: str, width: int) -> None:
    classifier = load_classifier(name, pretrained=False)
    check_against_nan(convolutionalize(classifier.net, classifier.input_size).net, 224, width)


layers = st.lists(
    st.tuples(
        st.sampled_from(["conv", "max", "avg"]),
        st.integers(1, 4),
        st.integers(1, 2),
        st.integers(0, 2),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=4,
)


@given(layers)
@settings(max_examples=40)
def test_derived_grid_is_the_measured_one_for_any_chain(chain: list[tuple[str, int, int, int, int]]) -> None:
    modules: list[nn.Module] = []
    for kind, kernel, stride, padding, dilation in chain:
        fitting = min(padding, kernel // 2)  # pooling asks for it
        if kind == "conv":
            modules.append(nn.Conv2d(3, 3, kernel, stride, fitting, dilation))
        elif kind == "max":
            modules.append(nn.MaxPool2d(kernel, stride, fitting, dilation, ceil_mode=True))
        else:
            modules.append(nn.AvgPool2d(kernel, stride, fitting))
    check_against_nan(nn.Sequential(*modules).eval(), 100, 300)  # a field is at most 91 pixels


def padded_vgg16() -> tuple[nn.Sequential, dict[str, int]]:
    """The released FCN's VGG-16: 100 pixels of padding on the first convolution, pools that round up."""
    modules: list[nn.Module] = []
    marks = {}
    channels = 3
    for block, depth in enumerate([2, 2, 3, 3, 3], start=1):
        for _ in range(depth):
            modules += [nn.Conv2d(channels, 4, 3, padding=100 if not modules else 1), nn.ReLU()]
            channels = 4
        modules.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        marks[f"pool{block}"] = len(modules)
    modules.append(nn.Conv2d(4, 4, 7))
    marks["fc6"] = len(modules)
    return nn.Sequential(*modules), marks


def test_the_released_vgg_nets_crops_come_out() -> None:
    net, marks = padded_vgg16()
    grids: dict[str, AxisGrid] = {}
    for name, length in marks.items():
        tracer, output = trace_grids(net[:length], 500, 500)
        found = tracer.grid(output)
        assert found is not None
        grids[name] = found.y
    assert [(grids[n].stride, grids[n].offset) for n in ("pool3", "pool4", "fc6")] == [
        (8, -95.5),
        (16, -91.5),
        (32, 12.5),
    ]
    assert grids["fc6"].field == 404

    def enlarged(offset: float, stride: int, factor: int) -> float:
        """Offset behind an unpadded bilinear transposed convolution of kernel 2 * factor and that stride."""
        return offset - (stride / factor) * (2 * factor - 1) / 2

    score, pool4, pool3 = grids["fc6"].offset, grids["pool4"].offset, grids["pool3"].offset
    assert -enlarged(score, 32, 32) == 19
    fused16 = enlarged(score, 32, 2)
    assert (fused16 - pool4) / 16 == 5
    assert -enlarged(fused16, 16, 16) == 27
    fused8 = enlarged(fused16, 16, 2)
    assert (fused8 - pool3) / 8 == 9
    assert -enlarged(fused8, 8, 8) == 31


def test_alexnets_receptive_field() -> None:
    classifier = load_classifier("alexnet", pretrained=False)
    certificate = convolutionalize(classifier.net).certificate
    assert certificate.receptive_field == (355, 355)
    assert certificate.output_stride == (32, 32)


def test_global_context_is_named() -> None:
    net = convolutionalize(seeded(SqueezeExcited), (64, 64)).net
    assert derive_net_grid(net, (64, 64)).global_context
    plain = convolutionalize(seeded(Residual), (64, 64)).net
    assert derive_net_grid(plain, (64, 64)).global_context == ()


def test_sizes_follow_from_extra_cells() -> None:
    net = convolutionalize(seeded(Squeezed), (64, 64)).net
    grid = derive_net_grid(net, (64, 64))
    for multiple in (0, 1, 5):
        height = grid.minimum[0] + multiple * grid.alignment[0]
        width = grid.minimum[1] + 2 * multiple * grid.alignment[1]
        with torch.no_grad():
            h, w = net(torch.zeros(1, 3, height, width)).shape[2:]
        y, x = grid.maps[-1].lattice
        assert (h, w) == (
            height // y.stride + grid.maps[-1].extra_cells[0],
            width // x.stride + grid.maps[-1].extra_cells[1],
        )


def test_maps_of_different_strides_cannot_be_added() -> None:
    with pytest.raises(ArchitectureError, match="stride"):
        Grid(AxisGrid(), AxisGrid()).joined(Grid(AxisGrid().convolved(2, 2, 0, 1), AxisGrid()))


def test_transposed_convolutions_keep_the_documented_centre() -> None:
    coarse = AxisGrid().convolved(2, 2, 0, 1).convolved(2, 2, 0, 1)
    fine = coarse.transposed(4, 2, 0)
    assert fine.stride == 2
    assert fine.offset == coarse.offset - 2 * (4 - 1) / 2

"""Derived grids against grids measured on the running net.

A NaN in a pixel column reaches exactly the cells that depend on it: it survives multiplication by zero weights, ReLU
and max pooling alike.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import SelectiveKernel
from torch import Tensor, nn
from torch.nn import functional as F

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


class TwoPaths(nn.Module):
    """Blocks of two convolutions of unequal reach, whose maps are added."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        widths = (3, 6, 6)
        self.near = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.far = nn.ModuleList(nn.Conv2d(a, b, 5, 2, 2) for a, b in pairwise(widths))
        self.fc = nn.Linear(widths[-1], 4)
        self._add = add

    def forward(self, x: Tensor) -> Tensor:
        for near, far in zip(self.near, self.far, strict=True):
            x = self._add(near(x), far(x)).relu()
        return self.fc(x.mean((2, 3)))


ADDITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "stack": lambda a, b: torch.stack([a, b], 1).sum(1),
    "stack as the last axis": lambda a, b: torch.stack([a, b], -1).sum(-1),
    "unsqueeze": lambda a, b: torch.cat([a.unsqueeze(1), b.unsqueeze(1)], 1).sum(1),
    "select": lambda a, b: (both := torch.stack([a, b], 1))[:, 0] + both.select(1, -1),
    "unbind": lambda a, b: (both := torch.stack([a, b]).unbind())[0] + both[1],
}


@pytest.mark.parametrize("add", ADDITIONS)
def test_an_axis_more_or_less_leaves_the_grid_as_it_is(add: str) -> None:
    plain = convolutionalize(seeded(lambda: TwoPaths(torch.add)), (32, 32))
    found = convolutionalize(seeded(lambda: TwoPaths(ADDITIONS[add])), (32, 32))
    assert found.certificate.receptive_field == plain.certificate.receptive_field == (13, 13)
    assert found.certificate == plain.certificate
    check_against_nan(found.net, 64, 96)


def test_a_row_of_a_map_is_no_map() -> None:
    class Row(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.select(2, 0)

    tracer, output = trace_grids(Row(), 8, 8)
    assert tracer.grid(output) is None


class Weighed(nn.Module):
    """In place of a selective kernel's attention: both paths count alike, wherever the image is looked at."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones((x.shape[0], 2, x.shape[2], 1, 1))


@pytest.mark.slow
def test_the_derived_grid_of_selective_kernels_is_the_measured_one() -> None:
    classifier = load_classifier("timm/skresnet18", pretrained=False)
    field = convolutionalize(classifier.net, classifier.input_size).certificate.receptive_field
    for module in classifier.net.modules():
        if isinstance(module, SelectiveKernel):
            module.attn = Weighed()
    net, certificate = convolutionalize(classifier.net, classifier.input_size)
    assert not certificate.global_context
    assert certificate.receptive_field == field == (619, 619)
    check_against_nan(net, 64, 1216)


def unshuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def unshuffled_channels_last(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c).transpose(2, 3)
    return blocks.reshape(n, h // 2, w // 2, 4 * c).permute(0, 3, 1, 2)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c // 6, 2, 3, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 6, 2 * h, 3 * w)


def softmax_in_windows(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    windows = x.view(n, c, h // 4, 4, w // 4, 4).transpose(3, 4)
    return windows.flatten(4).softmax(-1).view(windows.shape).transpose(3, 4).reshape(x.shape)


RESHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "dilated transposed convolution": lambda x: F.conv_transpose2d(x, torch.ones(6, 1, 4, 3), None, 1, 2, 0, 1, (2, 3)),
    "strided and dilated transposed convolution": lambda x: F.conv_transpose2d(
        x, torch.ones(6, 2, 4, 4), None, 2, 1, 0, 1, 3
    ),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 3),
    "pixel unshuffle, as a view": unshuffled,
    "pixel unshuffle, as a view of channels last": unshuffled_channels_last,
    "pixel shuffle": lambda x: F.pixel_shuffle(torch.cat([x, x, x], 1), 3),
    "pixel shuffle, as a view": shuffled,
    "rows and columns repeated": lambda x: x.repeat_interleave(2, 2).repeat_interleave(3, 3),
    "columns repeated": lambda x: x.repeat_interleave(2, 3),
    "nearest, enlarged": lambda x: F.interpolate(x, scale_factor=(2, 3)),
    "nearest to the centre, enlarged": lambda x: F.interpolate(x, scale_factor=(2, 3), mode="nearest-exact"),
    "nearest, shrunk": lambda x: F.interpolate(x, scale_factor=(1 / 2, 1 / 3)),
    "nearest to the centre, shrunk": lambda x: F.interpolate(x, scale_factor=(1 / 2, 1 / 3), mode="nearest-exact"),
    "bilinear, enlarged": lambda x: F.interpolate(x, scale_factor=(2, 4), mode="bilinear"),
    "bilinear, shrunk": lambda x: F.interpolate(x, scale_factor=(1 / 2, 1 / 4), mode="bilinear"),
    "bicubic, enlarged": lambda x: F.interpolate(x, scale_factor=(2, 4), mode="bicubic"),
    "bicubic, shrunk": lambda x: F.interpolate(x, scale_factor=(1 / 2, 1 / 4), mode="bicubic"),
}
RESHAPED_WITH_SLACK: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear, by odd numbers": lambda x: F.interpolate(x, scale_factor=(3, 1 / 3), mode="bilinear"),
    "bicubic, by odd numbers": lambda x: F.interpolate(x, scale_factor=(3, 1 / 3), mode="bicubic"),
    "softmax in windows": softmax_in_windows,
}


def measured_interval(function: Callable[[Tensor], Tensor], axis: AxisGrid, dim: int) -> tuple[Fraction, Fraction]:
    """The pixels that a map's cells depend on, relative to `stride * cell`; cells near the border are left out."""
    size = 36
    images = torch.zeros(size, 6, size, size)
    for place, image in enumerate(images):
        image.select(dim - 1, place).fill_(math.nan)
    reached = function(images).isnan().amax((1, 5 - dim))  # (places, cells)
    before, behind = [], []
    for cell in range(reached.shape[1]):
        places = [int(place) - axis.stride * cell for place in reached[:, cell].nonzero().flatten()]
        if 12 <= axis.offset + axis.stride * cell < size - 12:
            before.append(min(places))
            behind.append(max(places))
    return min(before), max(behind)


@pytest.mark.parametrize("name", [*RESHAPED, *RESHAPED_WITH_SLACK])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_derived_grid_of_reshaped_and_resized_maps_is_the_measured_one(name: str, dim: int) -> None:
    function = (RESHAPED | RESHAPED_WITH_SLACK)[name]
    derived = grid_behind(function)
    axis = (derived.y, derived.x)[dim - 2]
    first, last = measured_interval(function, axis, dim)
    if name in RESHAPED:
        assert (axis.first, axis.last) == (first, last)
    else:
        assert axis.first <= first <= last <= axis.last


def grid_behind(function: Callable[[Tensor], Tensor]) -> Grid:
    class Behind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    tracer, output = trace_grids(Behind(), 36, 36, 6)
    assert tracer.is_map(output)
    grid = tracer.grid(output)
    assert grid is not None
    return grid


@pytest.mark.parametrize("rows_first", [True, False])
def test_a_convolution_of_volumes_sees_rows_and_columns_by_their_own_kernels(rows_first: bool) -> None:  # noqa: FBT001
    kernel = torch.ones(1, 1, 5, 7, 1) if rows_first else torch.ones(1, 1, 1, 5, 7)

    def convolved(x: Tensor) -> Tensor:  # as position lambdas are, and fields of channels
        volume = x.permute(0, 2, 3, 1)[:, None] if rows_first else x[:, None]
        padding = [k // 2 for k in kernel.shape[2:]]
        answer = F.conv3d(volume, kernel, padding=padding)[:, 0]
        return answer.permute(0, 3, 1, 2) if rows_first else answer

    grid = grid_behind(convolved)
    assert ((grid.y.first, grid.y.last), (grid.x.first, grid.x.last)) == ((-2, 2), (-3, 3))


@pytest.mark.parametrize("scale", [1.5, 2 / 3])
def test_a_map_resized_by_a_broken_number_is_refused(scale: float) -> None:
    with pytest.raises(ArchitectureError, match="resizing 36 cells along an axis to .* has no constant stride"):
        grid_behind(lambda x: F.interpolate(x, scale_factor=scale))

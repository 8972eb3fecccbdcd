"""Derived grids against grids measured by gradients.

Where every weight is positive, normalisation is the identity and pooling averages, no path from a pixel to a cell is
closed and no two cancel: the gradient of a cell with respect to the image is positive where the cell depends on it and
exactly zero elsewhere. The numbers are float64: DenseNet-121's outermost column has a gradient of 5e-101, and in
float32 its field would seem 1335 pixels wide instead of 2071.
"""

import copy
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from training.conversion import convolutionalize
from training.grid import AxisGrid
from training.grid_tracer import trace_grids
from training.zoo import load_classifier

ACROSS = {"alexnet": 224, "vgg16": 224}  # pixels along the other axis, for nets whose first FC layer is a wide window
LOW = 64


def all_paths_open(net: nn.Module) -> nn.Module:
    """A float64 copy of a net in which every connection passes a positive gradient."""
    net = copy.deepcopy(net).double().eval()
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            replace(net, name, nn.Identity())
        elif isinstance(module, nn.MaxPool2d):
            assert module.dilation == 1, "average pooling has no dilation"
            average = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
            replace(net, name, average)
        elif isinstance(module, nn.ReLU6):
            replace(net, name, nn.ReLU())  # sums of residual branches pass 6, where ReLU6 is flat
    return net


def replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def measured_grid(net: nn.Module, size: tuple[int, int], axis: int) -> AxisGrid:
    """The grid along one axis (0: y, 1: x), from the gradients of the middle cell and of its neighbour."""
    image = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    cells = all_paths_open(net)(image).sum((0, 1, 3 - axis))
    middle = len(cells) // 2
    first, last = support(cells[middle], image, axis)
    next_first, next_last = support(cells[middle + 1], image, axis)
    assert first > 0, "the image is too small for the test"
    assert next_last < size[axis] - 1, "the image is too small for the test"
    stride = next_first - first
    assert next_last - last == stride
    return AxisGrid(Fraction(stride), Fraction(first - stride * middle), Fraction(last - stride * middle))


def support(cell: Tensor, image: Tensor, axis: int) -> tuple[int, int]:
    """First and last row (axis 0) or column (axis 1) of the image on which a cell depends."""
    (gradient,) = torch.autograd.grad(cell, image, retain_graph=True)
    places = torch.nonzero(gradient.sum((0, 1, 3 - axis))).flatten()
    return int(places[0]), int(places[-1])


def derived_grid(net: nn.Module, size: tuple[int, int], axis: int) -> AxisGrid:
    tracer, output = trace_grids(net, *size)
    grid = tracer.grid(output)
    assert grid is not None
    return (grid.y, grid.x)[axis]


def check_against_gradients(name: str, axis: int) -> None:
    torch.manual_seed(0)
    classifier = load_classifier(name, pretrained=False)
    net, certificate = convolutionalize(classifier.net, classifier.input_size)
    field, stride = certificate.receptive_field[axis], certificate.output_stride[axis]
    along, across = field + 5 * stride, ACROSS.get(name, LOW)
    size = (along, across) if axis == 0 else (across, along)
    measured = measured_grid(net, size, axis)
    assert measured == derived_grid(net, size, axis)
    assert (measured.stride, measured.offset, measured.field) == (Fraction(stride), certificate.offset[axis], field)


@pytest.mark.parametrize(("name", "axis"), [("mobilenet_v2", 1), ("squeezenet1_1", 1), ("squeezenet1_1", 0)])
def test_derived_grid_is_where_gradients_flow(name: str, axis: int) -> None:
    check_against_gradients(name, axis)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "densenet121", "googlenet", "resnet50", "vgg16"])
def test_derived_grid_is_where_gradients_flow_in_more_families(name: str) -> None:
    check_against_gradients(name, axis=1)


def strided(kernel: int = 3, stride: int = 2, padding: int = 1, dilation: int = 1) -> nn.Module:
    """A net of one layer that the test varies, between a convolution and a pooling that rounds up."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, 2, 2),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.Conv2d(4, 4, kernel, stride, padding, dilation),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    )


@pytest.mark.parametrize("change", [{"kernel": 4}, {"stride": 1}, {"padding": 0}, {"dilation": 2}])
def test_the_measurement_tells_nets_apart_that_differ_in_one_number(change: dict[str, int]) -> None:
    size = (32, 160)
    derived = derived_grid(strided(), size, axis=1)
    assert measured_grid(strided(), size, axis=1) == derived
    assert measured_grid(strided(**change), size, axis=1) != derived

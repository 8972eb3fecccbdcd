"""Laws of convolutionalization, over classifiers that nobody wrote down."""

import math
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.training.generated_classifiers import Generated, Pair, Spec, pairs, specs
from tests.training.small_nets import CLASSES, seeded
from training.conversion import TOLERANCE, convolutionalize
from training.grid import AxisGrid
from training.grid_tracer import trace_grids
from training.net_grid import derive_net_grid


def noise(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(7))


def classifier_of(spec: Spec) -> nn.Module:
    model = seeded(lambda: Generated(spec))
    with torch.no_grad():
        assume(model(noise(3, *spec.native)).isfinite().all())  # a dilated maximum may see nothing but padding
    return model


def axes_of(net: nn.Module, spec: Spec) -> tuple[AxisGrid, AxisGrid]:
    tracer, output = trace_grids(net, *spec.native)
    grid = tracer.grid(output)
    assert grid is not None
    return grid.y, grid.x


def assert_close(actual: Tensor, expected: Tensor, scale: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * scale.abs().max()


def law(test: Callable[..., None]) -> Callable[..., None]:
    return settings(max_examples=24, suppress_health_check=[HealthCheck.too_slow])(test)


@law
@given(specs())
def test_every_classifier_is_certified_and_keeps_its_identity_on_fresh_images(spec: Spec) -> None:
    model = classifier_of(spec)
    net, certificate = convolutionalize(model, spec.native)
    images = noise(3, *spec.native)
    with torch.no_grad():
        logits, heatmap = model(images), net(images)
    if certificate.identity == "window":
        assert heatmap.shape == (3, CLASSES, 1, 1)
    assert certificate.relative_error < TOLERANCE
    assert_close(heatmap.mean((2, 3)), logits, logits, TOLERANCE)


@law
@given(specs(), pairs(0, 3))
def test_the_map_has_the_derived_size(spec: Spec, more: Pair) -> None:
    net = convolutionalize(classifier_of(spec), spec.native).net
    grid = derive_net_grid(net, spec.native)
    size = [m + n * a for m, n, a in zip(grid.minimum, more, grid.alignment, strict=True)]
    (answer,) = grid.maps
    cells = [n // at.stride + extra for n, at, extra in zip(size, answer.lattice, answer.extra_cells, strict=True)]
    with torch.no_grad():
        assert list(net(noise(1, *size)).shape[2:]) == cells


@law
@given(specs())
def test_a_shift_by_the_alignment_shifts_the_map_by_whole_cells(spec: Spec) -> None:
    net = convolutionalize(classifier_of(spec), spec.native).net
    alignment, axes = derive_net_grid(net, spec.native).alignment, axes_of(net, spec)
    size = [axis.field + 3 * a for axis, a in zip(axes, alignment, strict=True)]
    image = noise(1, size[0] + alignment[0], size[1] + alignment[1])
    with torch.no_grad():
        still = net(image[:, :, : size[0], : size[1]])
        moved = net(image[:, :, alignment[0] :, alignment[1] :])
    for dim, (axis, n, a) in enumerate(zip(axes, size, alignment, strict=True), start=2):
        inside = [i for i in range(still.shape[dim]) if axis.first + axis.stride * i >= 0]
        inside = [i for i in inside if axis.last + axis.stride * i < n]
        cells = int(a / axis.stride)
        assert len(inside) > cells, "the image is too small for the test"
        still = still.narrow(dim, inside[0] + cells, len(inside) - cells)
        moved = moved.narrow(dim, inside[0], len(inside) - cells)
    assert_close(moved, still, still, 1e-4)


@law
@given(specs(padded=False), pairs(0, 2))
def test_every_cell_of_an_unpadded_net_is_the_classifier_on_its_own_crop(spec: Spec, more: Pair) -> None:
    model = classifier_of(spec)
    net, certificate = convolutionalize(model, spec.native, rule="window")
    (height, width), (y, x) = spec.native, certificate.output_stride
    image = noise(1, height + more[0] * y, width + more[1] * x)
    crops = [
        image[:, :, i * y : i * y + height, j * x : j * x + width]
        for i in range(more[0] + 1)
        for j in range(more[1] + 1)
    ]
    with torch.no_grad():
        heatmap, logits = net(image), model(torch.cat(crops))
    expected = logits.T.reshape(1, CLASSES, more[0] + 1, more[1] + 1)
    assert_close(heatmap, expected, expected, TOLERANCE)


@law
@given(specs(), st.sampled_from([0, 1]))
def test_a_middle_cell_depends_on_the_derived_interval_and_on_nothing_beyond(spec: Spec, axis: int) -> None:
    net = convolutionalize(classifier_of(spec), spec.native).net
    axes = axes_of(net, spec)
    cells = [math.floor((1 - at.first) / at.stride) + 1 for at in axes]  # the first that see no padding, nor all of it
    size = [int(at.last + at.stride * cell) + 2 for at, cell in zip(axes, cells, strict=True)]
    at, cell = axes[axis], cells[axis]
    first, last = int(at.first + at.stride * cell), int(at.last + at.stride * cell)
    images = noise(1, *size).repeat(4, 1, 1, 1)
    for image, place in zip(images, (first, last, first - 1, last + 1), strict=True):
        image.select(axis + 1, place).fill_(torch.nan)
    with torch.no_grad():
        reached = net(images).isnan().amax((1, 3 - axis))
    assert reached[:, cell].tolist() == [True, True, False, False]

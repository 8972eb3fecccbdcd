import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.errors import ArchitectureError
from training.grid import Lattice
from training.resample import resample
from training.upsampling import LearnedUpsampling

halves = st.integers(-80, 240).map(lambda i: i / 2)


@st.composite
def lattice_pairs(draw: st.DrawFn) -> tuple[Lattice, Lattice]:
    """A coarse lattice and a finer one."""
    stride = draw(st.sampled_from([1, 2, 8, 16]))
    factor = draw(st.integers(1, 5))
    return Lattice(stride * factor, draw(halves)), Lattice(stride, draw(halves))


@given(
    y=lattice_pairs(),
    x=lattice_pairs(),
    cells=st.tuples(*[st.integers(1, 5)] * 2),
    size=st.tuples(*[st.integers(1, 30)] * 2),
)
def test_before_it_is_trained_it_is_the_bilinear_interpolation_of_any_lattice(
    y: tuple[Lattice, Lattice], x: tuple[Lattice, Lattice], cells: tuple[int, int], size: tuple[int, int]
) -> None:
    source, target = (y[0], x[0]), (y[1], x[1])
    scores = torch.randn(2, 3, *cells, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = LearnedUpsampling(3, source, target)(scores, size)
    torch.testing.assert_close(found, resample(scores, source, target, size), rtol=0, atol=1e-5)


def test_its_filters_are_learned() -> None:
    lattices = (Lattice(16, 7.5), Lattice(8, 3.5))
    layer = LearnedUpsampling(2, (lattices[0],) * 2, (lattices[1],) * 2)
    layer(torch.randn(1, 2, 3, 3), (6, 6)).square().sum().backward()
    assert layer.transposed.weight.grad is not None
    assert layer.transposed.weight.grad.abs().max() > 0
    assert tuple(layer.transposed.weight.shape) == (2, 2, 4, 4)


def test_strides_that_are_no_multiple_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="stride 12 cannot be upsampled to stride 8"):
        LearnedUpsampling(2, (Lattice(12, 0),) * 2, (Lattice(8, 0),) * 2)

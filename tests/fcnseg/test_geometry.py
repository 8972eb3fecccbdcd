import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.geometry import AxisGeometry, Geometry

sizes = st.integers(1, 5000)


@st.composite
def axes(draw: st.DrawFn) -> AxisGeometry:
    """The geometry of some net: its alignment is a multiple of its stride, its minimum holds at least one pixel."""
    stride = 2 ** draw(st.integers(0, 5))
    alignment = stride * 2 ** draw(st.integers(0, 3))
    lead = alignment * draw(st.integers(0, 4))
    trail = draw(st.integers(0, 100))
    least = -(-(lead + trail + 1) // alignment)
    return AxisGeometry(
        stride=stride,
        offset=draw(st.floats(-20, 20)),
        field=draw(st.integers(1, 500)),
        alignment=alignment,
        minimum=alignment * (least + draw(st.integers(0, 3))),
        lead=lead,
        trail=trail,
        extra_cells=draw(st.integers(-6, 2)),
        margin=draw(st.integers(0, 500)),
    )


@given(axes(), sizes)
def test_the_padded_size_is_aligned_and_holds_the_image_and_its_padding(axis: AxisGeometry, size: int) -> None:
    padded = axis.padded(size)
    assert padded % axis.alignment == 0
    assert padded >= axis.minimum
    assert padded >= axis.lead + size + axis.trail
    assert padded - axis.alignment < max(axis.minimum, axis.lead + size + axis.trail)


@given(axes(), sizes)
def test_the_canonical_size_is_the_largest_with_the_same_padded_size(axis: AxisGeometry, size: int) -> None:
    canonical = axis.canonical(size)
    assert canonical >= size
    assert axis.padded(canonical) == axis.padded(size)
    assert axis.padded(canonical + 1) > axis.padded(size)
    assert axis.canonical(canonical) == canonical


@given(axes(), sizes)
def test_cells_follow_from_the_padded_size(axis: AxisGeometry, size: int) -> None:
    assert axis.cells(size) == axis.cells(axis.canonical(size))
    assert axis.cells(size + axis.alignment * 10) >= axis.cells(size)


@given(axes(), st.integers(0, 100))
def test_centres_are_one_stride_apart(axis: AxisGeometry, cell: int) -> None:
    assert axis.centre(cell + 1) - axis.centre(cell) == pytest.approx(axis.stride)
    assert axis.centre(0) == axis.offset - axis.lead


def test_vgg16_with_fc6_unpadded() -> None:
    """Its first cell looks at pixel 111.5 of the padded image: a lead of 96 brings that to 15.5."""
    axis = AxisGeometry(
        stride=32, offset=111.5, field=404, alignment=32, minimum=224, lead=96, trail=81, extra_cells=-6, margin=250
    )
    assert axis.centre(0) == 15.5
    assert axis.padded(224) == 416
    assert axis.cells(224) == 7
    assert axis.centre(axis.cells(224) - 1) == 207.5


def test_both_axes_have_their_own_geometry() -> None:
    y = AxisGeometry(stride=8, offset=3.5, field=9, alignment=32, minimum=32, lead=0, trail=0, extra_cells=0, margin=4)
    geometry = Geometry(y, dataclasses.replace(y, alignment=16, minimum=64))
    assert geometry.padded(33, 33) == (64, 64)
    assert geometry.canonical(65, 65) == (96, 80)


@pytest.mark.parametrize("change", [{"minimum": 33}, {"lead": 1}, {"alignment": 0}])
def test_padding_that_breaks_the_alignment_is_refused(change: dict[str, int]) -> None:
    axis = AxisGeometry(
        stride=8, offset=3.5, field=9, alignment=32, minimum=32, lead=0, trail=0, extra_cells=0, margin=4
    )
    with pytest.raises(ValueError, match="must be multiples of the alignment"):
        dataclasses.replace(axis, **change)

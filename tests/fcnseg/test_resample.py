import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcnseg.geometry import Geometry
from fcnseg.resample import resample_to_pixels, resample_window, span
from tests.plain_geometry import plain_axis


@given(
    npst.arrays(np.float32, npst.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(-9, 9, width=32)),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([4, 8, 32]),
    st.floats(-4, 20),
    st.floats(-4, 20),
)
def test_scores_are_interpolated_between_the_cells_around_a_pixel(
    scores: NDArray[np.float32], stride_y: int, stride_x: int, offset_y: float, offset_x: float
) -> None:
    """The direct formula: the tent of each cell's distance, clamped to the outermost centres."""
    geometry = Geometry(plain_axis(stride_y, offset_y), plain_axis(stride_x, offset_x))
    values = resample_to_pixels(scores, geometry, 11, 13)
    for y in range(11):
        for x in range(13):
            v = min(max((y - offset_y) / stride_y, 0), scores.shape[0] - 1)
            u = min(max((x - offset_x) / stride_x, 0), scores.shape[1] - 1)
            tent_y = np.maximum(0, 1 - np.abs(np.arange(scores.shape[0]) - v))
            tent_x = np.maximum(0, 1 - np.abs(np.arange(scores.shape[1]) - u))
            assert values[y, x] == pytest.approx(tent_y @ scores @ tent_x, abs=1e-4)


def test_a_plane_stays_a_plane_on_the_pixel_grid() -> None:
    """Scores that tell their cell's centre tell every pixel's own coordinate: nothing is shifted or stretched."""
    geometry = Geometry(plain_axis(32, 15.5), plain_axis(8, 3.5))
    centres = np.array([[geometry.x.centre(i) for i in range(12)]] * 3, np.float32)
    values = resample_to_pixels(centres, geometry, 70, 90)
    assert np.allclose(values[:, 4:90], np.arange(4, 90), atol=1e-4)


@given(
    npst.arrays(np.float32, npst.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1, width=32)),
    st.sampled_from([1, 3, 8]),
    st.floats(-9, 9),
    st.tuples(st.integers(0, 20), st.integers(0, 20)),
    st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_a_window_has_the_bits_of_the_whole(
    scores: NDArray[np.float32], stride: int, offset: float, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    geometry = Geometry(plain_axis(stride, offset), plain_axis(8, 3.5))
    down, right = slice(min(rows), max(rows)), slice(min(columns), max(columns))
    whole = resample_to_pixels(scores, geometry, 20, 20)
    assert np.array_equal(resample_window(scores, geometry, down, right), whole[down, right])


@given(st.integers(1, 8), st.sampled_from([1, 3, 8]), st.floats(-20, 20), st.integers(1, 30), st.data())
def test_cells_within_a_span_touch_no_pixel_outside_of_it(
    cells: int, stride: int, offset: float, size: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, cells - 1))
    last = data.draw(st.integers(first, cells - 1))
    line = np.zeros((cells, 1), np.float32)
    line[0 if first == 0 else first + 1 : cells if last == cells - 1 else last] = 1
    touched = resample_to_pixels(line, Geometry(plain_axis(stride, offset), plain_axis(1, 0)), size, 1)[:, 0] > 0
    where = plain_axis(stride, offset)
    within = span(where, cells, size, first, last)
    between = [p for p in range(size) if where.centre(first) <= p <= where.centre(last)]
    assert set(between) <= set(range(size)[within])
    assert 0 <= within.start <= within.stop <= size
    assert not touched[: within.start].any()
    assert not touched[within.stop :].any()
    if first > 0 and last < cells - 1:
        assert within.stop - within.start <= (last - first) * stride + 2

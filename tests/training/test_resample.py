import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.grid import Lattice
from training.resample import PIXELS, enlarge_nearest, resample

strides = st.sampled_from([1, 2, 4, 8, 16, 32])
offsets = st.integers(-64, 64).map(lambda n: n / 2)
cells = st.integers(1, 12)


@given(strides, offsets, cells, st.integers(1, 60))
def test_a_plane_is_reproduced_between_the_outer_cells(stride: int, offset: float, count: int, size: int) -> None:
    lattice = Lattice(stride, offset)
    centres = offset + stride * torch.arange(count, dtype=torch.float32)
    plane = (3 + 0.5 * centres)[:, None] - 0.25 * centres[None, :]
    result = resample(plane[None, None], (lattice, lattice), (PIXELS, PIXELS), (size, size))[0, 0]
    pixels = torch.arange(size, dtype=torch.float32).clamp(min=float(centres[0])).clamp(max=float(centres[-1]))
    expected = (3 + 0.5 * pixels)[:, None] - 0.25 * pixels[None, :]
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-5)


@given(strides, offsets, cells, st.integers(1, 60))
def test_nearest_takes_the_closest_cell(stride: int, offset: float, count: int, size: int) -> None:
    lattice = Lattice(stride, offset)
    values = torch.arange(count)[None, :, None].expand(1, count, count).contiguous()
    rows = enlarge_nearest(values, (lattice, lattice), (PIXELS, PIXELS), (size, size))[0, :, 0].numpy()
    distance = np.abs(np.arange(size)[:, None] - (offset + stride * np.arange(count))[None, :])
    chosen = np.take_along_axis(distance, rows[:, None].astype(int), 1)[:, 0]
    np.testing.assert_array_equal(chosen, distance.min(1))


def test_bilinear_transposed_convolution_is_the_same_where_the_offsets_fit_it() -> None:
    """The paper's layer: kernel 2s, stride s, filled with bilinear weights."""
    stride, channels = 8, 3
    scores = torch.randn(1, channels, 6, 7, generator=torch.Generator().manual_seed(0))
    taps = 1 - (torch.arange(2 * stride) - (2 * stride - 1) / 2).abs() / stride
    kernel = (taps[:, None] * taps[None, :]).expand(channels, 1, -1, -1).contiguous()
    paper = torch.nn.functional.conv_transpose2d(scores, kernel, stride=stride, groups=channels)
    # Its cell i lies at index s * i + (k - 1) / 2, so index 0 is the pixel 0 of this lattice.
    lattice = Lattice(stride, (2 * stride - 1) / 2)
    ours = resample(scores, (lattice, lattice), (PIXELS, PIXELS), (paper.shape[2], paper.shape[3]))
    inside = (..., slice(stride, -stride), slice(stride, -stride))  # at the border the paper fades to zero
    torch.testing.assert_close(ours[inside], paper[inside])

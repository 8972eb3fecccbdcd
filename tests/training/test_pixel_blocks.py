import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.grid import Lattice
from training.pixel_blocks import PixelBlocks
from training.resample import PIXELS, resample

lattices = st.builds(Lattice, st.sampled_from([1, 2, 3, 4, 8, 16, 32]), st.integers(-80, 64).map(lambda n: n / 2))
sides = st.integers(1, 70)


def scores_on(y: Lattice, x: Lattice, size: tuple[int, int], smooth: float, seed: int) -> Tensor:
    """Scores of two images for five classes, on as many cells as reach the pixels; the smoother, the fewer borders."""
    generator = torch.Generator().manual_seed(seed)
    h, w = (max(1, int((n - axis.offset) // axis.stride) + 2) for axis, n in zip((y, x), size, strict=True))
    everywhere = torch.randn(2, 5, 1, 1, generator=generator)
    return (1 - smooth) * torch.randn(2, 5, h, w, generator=generator) + smooth * everywhere


@given(lattices, lattices, sides, sides, st.sampled_from([0.0, 0.5, 0.8, 1.0]), st.integers(0, 99))
def test_the_best_class_is_that_of_the_resampled_scores(
    y: Lattice, x: Lattice, height: int, width: int, smooth: float, seed: int
) -> None:
    scores = scores_on(y, x, (height, width), smooth, seed)
    blocks = PixelBlocks(scores, (y, x), (height, width))
    classes, confidences = blocks.classes_and_confidences()
    torch.testing.assert_close(blocks.classes(), classes, rtol=0, atol=0)
    every = resample(scores, (y, x), (PIXELS, PIXELS), (height, width))
    best = every.topk(2, 1).values
    clear = best[:, 0] - best[:, 1] > 1e-4
    torch.testing.assert_close(classes[clear], every.argmax(1).to(torch.uint8)[clear], rtol=0, atol=0)
    expected = (every.softmax(1).amax(1) * 255).round()
    assert (confidences.to(torch.int32) - expected).abs().max() <= 1


def test_equal_scores_go_to_the_first_class() -> None:
    lattice = Lattice(8, 3.5)
    classes, confidences = PixelBlocks(torch.zeros(1, 3, 2, 2), (lattice, lattice), (16, 16)).classes_and_confidences()
    assert classes.max() == 0
    assert confidences.unique().tolist() == [85]


@pytest.mark.parametrize("classes", [1, 2, 64])
def test_any_number_of_classes_is_told_apart(classes: int) -> None:
    lattice = Lattice(4, 1.5)
    scores = torch.eye(classes).reshape(1, classes, 1, classes)  # cell i shows class i
    found = PixelBlocks(scores, (lattice, lattice), (4, 4 * classes)).classes()
    assert found[0, 0, 1::4].tolist() == found[0, 3, 2::4].tolist() == list(range(classes))

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import fcnseg
from fcnseg.errors import ImageError
from fcnseg.segmenter import Segmenter
from fcnseg.types import Segmentation
from tests.image_folders import noise


@pytest.fixture(scope="module")
def segmenter(tiny_model: Path) -> Segmenter:
    return fcnseg.load(tiny_model, "cpu", threads=1)


def test_every_pixel_gets_its_strongest_colour(segmenter: Segmenter) -> None:
    image = np.zeros((6, 9, 3), np.uint8)
    image[:, :4, 0] = image[:, 4:, 2] = 255
    answer = segmenter.segment(image)
    assert answer.class_map[:, :4].max() == 0
    assert (answer.class_map[:, 4:] == 2).all()
    assert {area.info.name: area.pixels for area in answer.classes} == {"red": 24, "blue": 30}
    assert answer.heatmap.shape == (3, 4, 6)
    assert answer.confidence is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (31, 2), (33, 47)])
def test_the_answer_has_the_images_own_size(segmenter: Segmenter, shape: tuple[int, int]) -> None:
    answer = segmenter.segment(noise(*shape), confidence=True)
    assert answer.class_map.shape == shape
    assert answer.class_map.flags.c_contiguous
    assert answer.confidence is not None
    assert answer.confidence.shape == shape


def test_a_path_bytes_and_pixels_give_the_same(segmenter: Segmenter, tmp_path: Path) -> None:
    image = noise(13, 17)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(buffer.getvalue())
    expected = segmenter.segment(image).class_map
    for source in (path, str(path), buffer.getvalue(), image[:, ::-1][:, ::-1], np.asfortranarray(image)):
        assert np.array_equal(segmenter.segment(source).class_map, expected)


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_an_answer_does_not_depend_on_its_neighbours_in_the_batch(
    segmenter: Segmenter, height: int, width: int, data: st.DataObject
) -> None:
    images = [noise(height, width, 1)]
    canonical = segmenter.canonical_shape(images[0])
    for seed in range(2, 5):
        # Other sizes that are padded to the same shape: down to three pixels less, the alignment being 4.
        other = [max(1, size - data.draw(st.integers(0, 3))) for size in canonical]
        images.append(noise(other[0], other[1], seed))
    together = segmenter.segment_batch(images, confidence=True)
    for image, answer in zip(images, together, strict=True):
        require_answer_alone(segmenter, image, answer)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(5, 8), st.integers(9, 12), st.booleans()), min_size=1, max_size=4))
def test_images_that_are_padded_already_are_answered_as_they_were_before(
    segmenter: Segmenter, images: list[tuple[int, int, bool]]
) -> None:
    plain = [noise(height, width, seed) for seed, (height, width, _) in enumerate(images)]
    given = [
        edge_padded(image, 8, 12) if is_padded else image for image, (*_, is_padded) in zip(plain, images, strict=True)
    ]
    sizes = [(height, width) for height, width, _ in images]
    for image, answer in zip(plain, segmenter.segment_prepared(given, sizes, confidence=True), strict=True):
        require_answer_alone(segmenter, image, answer)


def require_answer_alone(segmenter: Segmenter, image: NDArray[np.uint8], answer: Segmentation) -> None:
    alone = segmenter.segment(image, confidence=True)
    assert np.array_equal(answer.class_map, alone.class_map)
    assert np.array_equal(answer.heatmap, alone.heatmap)
    assert answer.confidence is not None
    assert alone.confidence is not None
    assert np.array_equal(answer.confidence, alone.confidence)


def edge_padded(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")


def test_a_batch_needs_one_canonical_shape(segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match=r"one canonical shape; got \[\(8, 8\), \(12, 8\)\]"):
        segmenter.segment_batch([noise(8, 8), noise(9, 8)])
    with pytest.raises(ValueError, match="one canonical shape"):
        segmenter.segment_batch([])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_pixels_of_another_shape_or_dtype_are_refused(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError, match=r"must be a \(H, W, 3\) uint8 array"):
        segmenter.segment(image)


def test_unreadable_images_are_refused(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nix\.jpg does not exist"):
        segmenter.segment(tmp_path / "nix.jpg")
    with pytest.raises(ImageError, match="empty"):
        segmenter.segment(b"")


def test_the_public_names_are_those_of_all() -> None:
    assert all(hasattr(fcnseg, name) for name in fcnseg.__all__)
    assert sorted(fcnseg.__all__) == fcnseg.__all__

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcnseg import render
from fcnseg.geometry import Geometry
from fcnseg.regions import Box, Region
from fcnseg.types import ClassArea, LabelMap, Segmentation
from tests.plain_geometry import plain_axis

LABELS = LabelMap.from_names(["background", "cat", "dog"], [(10, 20, 30), (250, 100, 0), (0, 90, 200)])


def areas(class_map: NDArray[np.uint8], label_map: LabelMap = LABELS) -> tuple[ClassArea, ...]:
    return Segmentation(class_map, np.zeros((3, 1, 1), np.float32), None, label_map).classes


def test_a_colour_mask_has_the_classes_colours() -> None:
    picture = render.colour_mask(np.array([[0, 1], [2, 1]], np.uint8), LABELS)
    assert picture.tolist() == [[[10, 20, 30], [250, 100, 0]], [[0, 90, 200], [250, 100, 0]]]


def test_ids_beyond_255_have_colours_too() -> None:
    many = LabelMap.from_names([str(i) for i in range(300)])
    assert render.colour_mask(np.array([[299]], np.uint16), many)[0, 0].tolist() == list(many.classes[299].colour)


@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 2)))
def test_boundaries_are_the_pixels_with_a_neighbour_of_another_class(class_map: NDArray[np.uint8]) -> None:
    height, width = class_map.shape
    expected = np.zeros(class_map.shape, bool)
    for y, x in np.ndindex(class_map.shape):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        near = [class_map[v, u] for v, u in around if 0 <= v < height and 0 <= u < width]
        expected[y, x] = any(other != class_map[y, x] for other in near)
    assert np.array_equal(render.boundaries(class_map), expected)


def test_an_overlay_tints_the_image_and_draws_boundaries_in_full_colour() -> None:
    image = np.full((4, 8, 3), 100, np.uint8)
    class_map = np.zeros((4, 8), np.uint8)
    class_map[:, 4:] = 1
    picture = render.overlay(image, class_map, LABELS, opacity=0.5)
    assert picture[0, 0].tolist() == [55, 60, 65]
    assert picture[0, 7].tolist() == [175, 100, 50]
    assert picture[2, 3].tolist() == [10, 20, 30]
    assert picture[2, 4].tolist() == [250, 100, 0]
    assert (image == 100).all()


def test_boxes_are_drawn_in_their_class_colour_inside_the_picture() -> None:
    image = np.full((120, 160, 3), 77, np.uint8)
    regions = [
        Region(LABELS.classes[1], Box(30, 40, 60, 80), 0.9, 0.95, 2000),
        Region(LABELS.classes[2], Box(0, 150, 120, 10), 0.6, 0.7, 900),
    ]
    picture = render.boxes(image, regions)
    assert picture.shape == image.shape
    for row, column in ((89, 100), (70, 40), (70, 119)):
        assert picture[row, column].tolist() == [250, 100, 0]
    assert picture[119, 155].tolist() == [0, 90, 200]
    assert picture[70, 80].tolist() == picture[110, 20].tolist() == [77, 77, 77]
    assert (picture[2:10, :149] != 77).any()  # a label that would not fit begins further left
    assert (image == 77).all()


def test_no_regions_leave_the_picture_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(render.boxes(image, ()), image)


def test_opacity_0_is_the_image_within_a_class() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(render.overlay(image, np.ones((5, 6), np.uint8), LABELS, opacity=0), image)


def test_a_legend_shows_swatch_and_text_of_every_class_present() -> None:
    class_map = np.zeros((200, 120), np.uint8)
    class_map[:50] = 1
    picture = render.colour_mask(class_map, LABELS)
    whole = render.legend(picture, areas(class_map))
    assert np.array_equal(whole[:200, :120], picture)
    panel = whole[:, 120:].reshape(-1, 3)
    assert whole.shape[0] == 200
    for colour, expected in ((LABELS.classes[0].colour, True), (LABELS.classes[1].colour, True), ((0, 90, 200), False)):
        assert (panel == colour).all(axis=1).any() == expected
    assert (panel.max(axis=1) < 60).sum() > 100  # dark text on light paper


def test_a_legend_makes_room_and_counts_what_it_does_not_name() -> None:
    many = LabelMap.from_names([f"class number {i}" for i in range(40)])
    class_map = np.arange(40, dtype=np.uint8).reshape(4, 10)
    whole = render.legend(render.colour_mask(class_map, many), areas(class_map, many))
    assert whole.shape[0] > 25 * 13
    assert whole.shape[1] > 10 + 13 * 8
    shown = {tuple(pixel) for pixel in whole[:, 10:].reshape(-1, 3).tolist()}
    assert sum(info.colour in shown for info in many.classes[1:24]) == 23
    assert not any(info.colour in shown for info in many.classes[24:])


def test_the_hottest_pixel_of_a_heatmap_is_where_the_cell_looks() -> None:
    geometry = Geometry(plain_axis(8, 4.0), plain_axis(8, 4.0))
    scores = np.zeros((5, 6), np.float32)
    scores[3, 1] = 7
    picture = render.heatmap(np.full((40, 48, 3), 90, np.uint8), scores, geometry)
    brightness = picture.astype(int).sum(axis=2)
    assert np.unravel_index(brightness.argmax(), brightness.shape) == (geometry.y.centre(3), geometry.x.centre(1))


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30])
def test_a_heatmap_of_equal_scores_is_drawn(value: float) -> None:
    picture = render.heatmap(
        np.zeros((9, 9, 3), np.uint8), np.full((2, 2), value, np.float32), Geometry(plain_axis(8, 4), plain_axis(8, 4))
    )
    assert picture.shape == (9, 9, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_leave_the_others_their_colours(value: float) -> None:
    geometry = Geometry(plain_axis(8, 4.0), plain_axis(8, 4.0))
    scores = np.linspace(0, 1, 30, dtype=np.float32).reshape(5, 6)
    image = np.full((40, 48, 3), 90, np.uint8)
    plain = render.heatmap(image, scores, geometry)
    scores[0, 3:5] = value
    picture = render.heatmap(image, scores, geometry)
    assert np.array_equal(picture[16:], plain[16:])
    extreme = plain[-1, -1] if value == np.inf else plain[0, 0]
    assert np.array_equal(picture[4, 28], extreme)
    assert len(np.unique(render.heatmap(image, np.full((5, 6), value, np.float32), geometry))) <= 3

import time
import tracemalloc
from collections import deque
from typing import Any

import cv2
import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcnseg.errors import UsageError
from fcnseg.geometry import Geometry
from fcnseg.regions import MAX_LIMIT, Box, Region, RegionQuery, find_regions, search_bytes
from fcnseg.resample import resample_to_pixels
from fcnseg.types import LabelMap, Segmentation
from tests.plain_geometry import plain_axis

LABELS = LabelMap.from_names(["ground", "cat", "dog"])


def segmented(scores: NDArray[np.float32], height: int, width: int) -> Segmentation:
    return Segmentation(np.zeros((height, width), np.uint8), scores, None, LABELS)


def one_hot(cells: NDArray[np.bool_], class_id: int = 1) -> NDArray[np.float32]:
    """Scores by which a class is nearly certain at the cells set, and the ground elsewhere."""
    scores = np.zeros((3, *cells.shape), np.float32)
    scores[class_id][cells] = 20
    scores[0][~cells] = 20
    return scores


def components(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The 8-connected components of a mask, by flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        part = np.zeros_like(mask)
        waiting = deque([left.pop()])
        while waiting:
            y, x = waiting.popleft()
            part[y, x] = True
            near = {(y + v, x + u) for v in (-1, 0, 1) for u in (-1, 0, 1)} & left
            left -= near
            waiting.extend(near)
        found.append(part)
    return found


def tight_box(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)


def place(region: Region) -> tuple[int, int, int, int, int, int]:
    box = region.box
    return region.info.id, box.top, box.left, box.height, box.width, region.pixels


HEATMAPS = npst.arrays(
    np.float32, st.tuples(st.just(3), st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-4, 4, width=32)
)


@given(
    HEATMAPS,
    st.sampled_from([1, 2, 4, 5]),
    st.sampled_from([2, 8]),
    st.floats(-6, 12),
    st.floats(-6, 12),
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(0.01, 0.99),
)
def test_regions_are_the_components_of_the_thresholded_plane(
    scores: NDArray[np.float32],
    stride_y: int,
    stride_x: int,
    offset_y: float,
    offset_x: float,
    height: int,
    width: int,
    threshold: float,
) -> None:
    """Their boxes are tight, and together they are where a class's plane reaches the threshold."""
    segmentation = segmented(scores, height, width)
    geometry = Geometry(plain_axis(stride_y, offset_y), plain_axis(stride_x, offset_x))
    regions = find_regions(segmentation, geometry, RegionQuery(threshold=threshold, limit=MAX_LIMIT))
    expected = []
    for info in LABELS.classes:
        plane = np.minimum(resample_to_pixels(segmentation.probabilities[info.id], geometry, height, width), 1)
        for part in components(plane >= threshold):
            values = plane[part].astype(np.float64)
            expected.append(Region(info, tight_box(part), float(values.mean()), float(values.max()), int(part.sum())))
    assert sorted(map(place, regions)) == sorted(map(place, expected))
    assert sorted(r.peak for r in regions) == sorted(r.peak for r in expected)
    assert sorted(r.score for r in regions) == sorted(r.score for r in expected)
    for region in regions:
        assert np.float32(threshold) <= region.score <= region.peak <= 1
        assert region.pixels <= region.box.height * region.box.width


def plain_regions(segmentation: Segmentation, geometry: Geometry, query: RegionQuery) -> list[Region]:
    """The regions of whole planes, one by one, in the order of their ranks."""
    height, width = segmentation.class_map.shape
    found = []
    for info in LABELS.classes:
        plane = np.minimum(resample_to_pixels(segmentation.probabilities[info.id], geometry, height, width), 1)
        count, labels = cv2.connectedComponents((plane >= query.threshold).view(np.uint8), connectivity=8)
        for label in range(1, count):
            part = labels == label
            score, peak = float(plane[part].mean(dtype=np.float64)), float(plane[part].max())
            found.append(Region(info, tight_box(part), score, peak, int(part.sum())))
    found.sort(key=lambda r: (-r.score, r.info.id, r.box.top, r.box.left))
    return [region for region in found if region.pixels >= query.min_pixels][: query.limit]


@given(
    st.lists(
        st.tuples(st.integers(0, 44), st.integers(0, 44), st.integers(1, 40), st.integers(1, 40), st.floats(1, 9)),
        min_size=1,
        max_size=9,
    ),
    st.floats(-6, 12),
    st.floats(-6, 12),
    st.integers(300, 360),
    st.floats(0.01, 0.99),
    st.sampled_from([1, 5, MAX_LIMIT]),
    st.sampled_from([1, 60]),
)
@example([(8, 25, 1, 1, 9), (10, 0, 11, 1, 9), (20, 0, 1, 40, 9), (40, 40, 1, 1, 9)], 0.5, 0.5, 360, 0.05, 1000, 1)
@settings(max_examples=60)
def test_frames_that_lie_apart_or_within_each_other_are_found_as_in_the_whole_plane(
    frames: list[tuple[int, int, int, int, float]],
    offset_y: float,
    offset_x: float,
    side: int,
    threshold: float,
    limit: int,
    min_pixels: int,
) -> None:
    """Large images of few regions are searched by windows; the answer is the same to the last bit."""
    scores = np.zeros((3, 45, 45), np.float32)
    scores[2] = 4
    for top, left, height, width, score in frames:
        outline = np.zeros((45, 45), bool)
        outline[top : top + height, left : left + width] = True
        outline[top + 1 : top + height - 1, left + 1 : left + width - 1] = False
        scores[1][outline] = score
    segmentation = segmented(scores, side, side)
    geometry = Geometry(plain_axis(8, offset_y), plain_axis(8, offset_x))
    query = RegionQuery(threshold=threshold, limit=limit, min_pixels=min_pixels)
    assert list(find_regions(segmentation, geometry, query)) == plain_regions(segmentation, geometry, query)


SMALL_GRID = Geometry(plain_axis(2, 0.5), plain_axis(2, 0.5))


def two_dots() -> NDArray[np.bool_]:
    cells = np.zeros((60, 60), bool)
    cells[5, 5] = cells[50, 50] = True
    return cells


def ten_thousand_dots() -> NDArray[np.bool_]:
    cells = np.zeros((600, 600), bool)
    cells[1::6, 1::6] = True
    return cells


def diagonals() -> NDArray[np.bool_]:
    """Lines whose boxes lie upon each other."""
    y, x = np.indices((600, 600))
    cells: NDArray[np.bool_] = (x - y) % 7 == 0
    return cells


@pytest.mark.parametrize(("cells", "count"), [(ten_thousand_dots(), 10_000), (diagonals(), 171)])
def test_many_regions_take_about_as_long_as_one_that_covers_the_image(cells: NDArray[np.bool_], count: int) -> None:
    """A search that looks at the image once for each takes 30 and 300 times as long."""

    def least_seconds(cells: NDArray[np.bool_]) -> float:
        segmentation = segmented(one_hot(cells), 1200, 1200)
        assert segmentation.probabilities.shape == (3, 600, 600)  # computed now
        seconds = []
        for _ in range(3):
            began = time.process_time()
            find_regions(segmentation, SMALL_GRID, RegionQuery(("cat",), limit=1))
            seconds.append(time.process_time() - began)
        return min(seconds)

    plane = resample_to_pixels(cells.astype(np.float32), SMALL_GRID, 1200, 1200)
    assert cv2.connectedComponents((plane >= 0.5).view(np.uint8), connectivity=8)[0] - 1 == count
    assert least_seconds(cells) < 10 * least_seconds(np.ones_like(cells))


@pytest.mark.parametrize("stride", [2, 8])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_search_takes_no_more_memory_than_is_told(stride: int, step: int) -> None:
    count = 1600 // stride
    cells = np.zeros((count, count), bool)
    cells[::step, ::step] = True
    segmentation = segmented(one_hot(cells), 1600, 1600)
    assert segmentation.probabilities.shape == (3, count, count)  # computed now
    geometry = Geometry(plain_axis(stride, 0.5), plain_axis(stride, 0.5))
    tracemalloc.start()
    try:
        find_regions(segmentation, geometry, RegionQuery(("cat",), limit=1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 8 * 1600 * 1600 < peak < search_bytes(1600, 1600, cells.size)


@given(
    npst.arrays(np.float32, (3, 3), elements=st.floats(0, 20, width=32)),
    st.integers(-2, 2),
    st.integers(-2, 2),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([2, 4, 8]),
)
def test_a_shift_by_whole_cells_moves_regions_by_the_stride(
    blob: NDArray[np.float32], down: int, right: int, stride_y: int, stride_x: int
) -> None:
    geometry = Geometry(plain_axis(stride_y, stride_y / 2 - 0.5), plain_axis(stride_x, stride_x / 2 - 0.5))
    scores = np.zeros((3, 9, 9), np.float32)
    scores[0] = 10
    scores[1, 3:6, 3:6] = blob
    moved = np.roll(scores, (down, right), axis=(1, 2))
    size = (9 * stride_y, 9 * stride_x)
    before = find_regions(segmented(scores, *size), geometry, RegionQuery(("cat",)))
    after = find_regions(segmented(moved, *size), geometry, RegionQuery(("cat",)))
    assert sorted(place(region) for region in after) == sorted(
        (i, top + down * stride_y, left + right * stride_x, *rest)
        for i, top, left, *rest in (place(region) for region in before)
    )


def test_a_square_of_cells_becomes_one_box_where_the_cells_look() -> None:
    cells = np.zeros((8, 8), bool)
    cells[2:5, 3:6] = True
    geometry = Geometry(plain_axis(8, 3.5), plain_axis(8, 3.5))
    (region,) = find_regions(segmented(one_hot(cells), 64, 64), geometry, RegionQuery(("cat",)))
    assert region.info.name == "cat"
    assert region.box == Box(top=16, left=24, height=24, width=24)
    assert region.peak == pytest.approx(1)


def test_a_region_around_another_leaves_it_to_be_found_once() -> None:
    cells = np.ones((9, 9), bool)
    cells[1:8, 1:8] = False
    cells[4, 4] = True
    geometry = Geometry(plain_axis(8, 3.5), plain_axis(8, 3.5))
    found = find_regions(segmented(one_hot(cells), 72, 72), geometry, RegionQuery(("cat",)))
    assert {region.box for region in found} == {Box(0, 0, 72, 72), Box(32, 32, 8, 8)}
    assert len(found) == 2


@given(HEATMAPS, st.integers(1, 6))
def test_a_limit_keeps_the_regions_with_the_highest_scores(scores: NDArray[np.float32], limit: int) -> None:
    segmentation, geometry = segmented(scores, 12, 12), Geometry(plain_axis(2, 0.5), plain_axis(2, 0.5))
    everything = find_regions(segmentation, geometry, RegionQuery(threshold=0.2))
    assert [r.score for r in everything] == sorted((r.score for r in everything), reverse=True)
    assert find_regions(segmentation, geometry, RegionQuery(threshold=0.2, limit=limit)) == everything[:limit]


def test_equal_scores_are_ordered_by_class_and_place() -> None:
    cells = np.zeros((5, 9), bool)
    cells[1, [1, 7]] = cells[3, 4] = True
    scores = one_hot(cells, 2)
    scores[1] = scores[2]
    scores[2] = np.roll(scores[1], 1, axis=1)
    scores[0][scores[2] > 0] = 0
    geometry = Geometry(plain_axis(1, 0), plain_axis(1, 0))
    segmentation = segmented(scores, 5, 9)
    found = find_regions(segmentation, geometry, RegionQuery(("dog", "cat"), threshold=0.4))
    keys = [(-r.score, r.info.id, r.box.top, r.box.left) for r in found]
    assert keys == sorted(keys)
    assert len({r.score for r in found}) < len(found) == 6
    cats = find_regions(segmentation, geometry, RegionQuery(("cat",), threshold=0.4))
    for limit in range(1, 7):
        query = RegionQuery(("dog", "cat"), threshold=0.4, limit=limit)
        assert find_regions(segmentation, geometry, query) == found[:limit]
        assert find_regions(segmentation, geometry, RegionQuery(("cat",), threshold=0.4, limit=limit)) == cats[:limit]


def test_a_limit_chooses_among_hundreds() -> None:
    """Many of them are equal, being one pixel each."""
    geometry = Geometry(plain_axis(1, 0), plain_axis(1, 0))
    scores = np.random.default_rng(0).choice(np.array([0, 1, 3, 5], np.float32), (3, 100, 100))
    segmentation = segmented(scores, 100, 100)
    everything = plain_regions(segmentation, geometry, RegionQuery(threshold=0.8, limit=MAX_LIMIT))
    assert len(everything) == MAX_LIMIT
    assert len({region.score for region in everything}) < MAX_LIMIT / 2
    for limit in (1, 7, 70, 500):
        found = find_regions(segmentation, geometry, RegionQuery(threshold=0.8, limit=limit))
        assert list(found) == everything[:limit]


@pytest.mark.parametrize("names", [("cat",), ("CAT ", "1", "cat"), ("1",)])
def test_classes_are_named_in_any_way_and_counted_once(names: tuple[str, ...]) -> None:
    scores = one_hot(np.eye(3, dtype=bool))
    (region,) = find_regions(
        segmented(scores, 6, 6), Geometry(plain_axis(2, 0.5), plain_axis(2, 0.5)), RegionQuery(names)
    )
    assert region.info == LABELS.classes[1]


def test_without_a_name_every_class_is_searched() -> None:
    scores = one_hot(np.arange(6).reshape(1, 6) >= 3)
    found = find_regions(segmented(scores, 2, 12), Geometry(plain_axis(2, 0.5), plain_axis(2, 0.5)))
    assert {region.info.name for region in found} == {"ground", "cat"}
    assert sum(region.pixels for region in found) == 24


def test_cells_that_look_at_the_padding_alone_make_no_region() -> None:
    cells = np.zeros((4, 4), bool)
    cells[3, 3] = True
    geometry = Geometry(plain_axis(8, 3.5), plain_axis(8, 3.5))
    assert find_regions(segmented(one_hot(cells), 5, 5), geometry, RegionQuery(("cat",))) == ()


def test_an_unknown_class_is_answered_with_the_closest() -> None:
    with pytest.raises(UsageError, match=r"no class 'dgo' in the model; did you mean dog\?"):
        find_regions(
            segmented(one_hot(np.eye(3, dtype=bool)), 6, 6),
            Geometry(plain_axis(2, 0), plain_axis(2, 0)),
            RegionQuery(("dgo",)),
        )


@pytest.mark.parametrize("threshold", [0.0, 0.0099, 1.0, -0.5, 2.0, float("nan"), float("inf")])
def test_a_threshold_is_a_probability_from_one_percent(threshold: float) -> None:
    with pytest.raises(UsageError, match=r"threshold is .*; it must be from 0\.01 to below 1"):
        RegionQuery(threshold=threshold)


@pytest.mark.parametrize(
    ("cells", "names", "checks"),
    [
        (two_dots(), ("cat", "dog"), 2 + 2 * 3),  # classes; each cluster, before, within and in its one band
        (np.ones((600, 600), bool), ("cat",), 1 + 2 + 16),  # and in each band of a large one
    ],
    ids=["dots", "whole"],
)
def test_a_check_may_end_the_search_before_each_class_and_cluster_and_on_the_way_through_it(
    cells: NDArray[np.bool_], names: tuple[str, ...], checks: int
) -> None:
    segmentation = segmented(one_hot(cells), 2 * cells.shape[0], 2 * cells.shape[1])
    assert segmentation.probabilities.shape == (3, *cells.shape)  # computed now
    query = RegionQuery(names)
    left = list(range(checks))
    assert find_regions(segmentation, SMALL_GRID, query, left.pop)
    assert not left
    for count in range(checks):
        left = list(range(count))
        with pytest.raises(IndexError):
            find_regions(segmentation, SMALL_GRID, query, left.pop)


def test_small_regions_are_left_out_before_the_limit_counts() -> None:
    cells = np.zeros((8, 8), bool)
    cells[1, 1] = cells[4:7, 3:7] = True
    scores = one_hot(cells)
    scores[1, 4:7, 3:7] = 1  # the large one is the less probable
    segmentation, geometry = segmented(scores, 32, 32), Geometry(plain_axis(4, 1.5), plain_axis(4, 1.5))
    best, large = find_regions(segmentation, geometry, RegionQuery(("cat",)))
    assert best.pixels < large.pixels
    query = RegionQuery(("cat",), limit=1, min_pixels=best.pixels + 1)
    assert find_regions(segmentation, geometry, query) == (large,)


@pytest.mark.parametrize(
    ("classes", "words"), [("cat", "is the text 'cat'; give a list of"), ((3,), "has 3; give a class by its name")]
)
def test_classes_are_given_as_a_list_of_texts(classes: Any, words: str) -> None:
    with pytest.raises(UsageError, match=f"the regions' classes {words}"):
        RegionQuery(classes)


@pytest.mark.parametrize("min_pixels", [0, 2**64])
def test_the_fewest_pixels_of_a_region_are_at_least_one_and_what_a_request_can_hold(min_pixels: int) -> None:
    with pytest.raises(UsageError, match=f"least size is {min_pixels} pixels; it must be from 1 to {2**64 - 1}"):
        RegionQuery(min_pixels=min_pixels)


@pytest.mark.parametrize("limit", [0, -1, MAX_LIMIT + 1])
def test_a_limit_is_from_1_to_1000(limit: int) -> None:
    with pytest.raises(UsageError, match=f"limit is {limit}; it must be from 1 to 1000"):
        RegionQuery(limit=limit)


@given(npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_the_box_around_a_mask_is_tight(mask: NDArray[np.bool_]) -> None:
    if mask.any():
        assert Box.around(mask) == tight_box(mask)

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcnseg.errors import UsageError
from fcnseg.types import ClassInfo, LabelMap, Segmentation, count_ids, voc_colour
from fcnseg.words import closest

LABELS = LabelMap.from_names(["background", "Cat", "dog"], ignore_id=255)


def test_voc_colours_are_those_of_the_dataset() -> None:
    """The published colours of background, aeroplane, bicycle, bird, cat, train, tv/monitor and void."""
    published = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        8: (64, 0, 0),
        19: (128, 192, 0),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {index: voc_colour(index) for index in published} == published


def test_voc_colours_differ() -> None:
    assert len({voc_colour(index) for index in range(1000)}) == 1000


@pytest.mark.parametrize("ids", [[], [1], [0, 2], [1, 0], [0, 0]])
def test_ids_must_be_0_to_k_minus_1(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="class ids must be 0 to K - 1"):
        LabelMap(tuple(ClassInfo(i, str(i), (0, 0, 0)) for i in ids))


def test_more_classes_than_ids_of_16_bits_tell_apart_are_refused() -> None:
    names = [""] * 65535
    label_map = LabelMap.from_names(names)
    assert np.iinfo(label_map.id_dtype).max not in {info.id for info in label_map.classes}
    with pytest.raises(ValueError, match="there are 65536 classes, and class maps can tell 65535 apart"):
        LabelMap.from_names([*names, ""])


def test_the_ignore_id_is_no_class() -> None:
    with pytest.raises(ValueError, match="ignore id 1 is also the id of class b"):
        LabelMap.from_names(["a", "b"], ignore_id=1)


def test_the_hash_changes_with_names_colours_order_and_ignore_id() -> None:
    black, white = (0, 0, 0), (255, 255, 255)
    label_maps = [
        LabelMap.from_names(["a", "b"], [black, white]),
        LabelMap.from_names(["b", "a"], [black, white]),
        LabelMap.from_names(["a", "b"], [white, black]),
        LabelMap.from_names(["a", "b"], [black, white], ignore_id=255),
    ]
    assert len({label_map.hash for label_map in label_maps}) == 4
    assert LabelMap.from_names(["a", "b"], [black, white]).hash == label_maps[0].hash


def test_the_palette_has_at_least_256_colours() -> None:
    assert LABELS.palette.shape == (256, 3)
    assert LABELS.palette[1].tolist() == [128, 0, 0]
    assert not LABELS.palette[3:].any()
    assert LabelMap.from_names([str(i) for i in range(300)]).palette.shape == (300, 3)


@pytest.mark.parametrize("wanted", ["cat", "CAT ", "1"])
def test_a_class_is_found_by_name_or_id(wanted: str) -> None:
    assert LABELS.find(wanted).name == "Cat"


def test_of_classes_that_answer_to_one_word_the_first_is_found() -> None:
    label_map = LabelMap.from_names(["crane", "2", "CRANE"])
    assert label_map.find("Crane").id == 0
    assert label_map.find("2").id == 1


@pytest.mark.parametrize(("wanted", "found"), [("0", 1), ("1", 2), ("9", 10), ("10", 10), ("background", 0)])
def test_a_name_that_is_a_number_comes_before_the_id(wanted: str, found: int) -> None:
    assert LabelMap.from_names(["background", *"0123456789"]).find(wanted).id == found


@given(st.lists(st.sampled_from(["a", "A", " a", "", "0", "1", "2", "3", "\u00df", "SS"]), min_size=1, max_size=5))
def test_the_word_for_a_class_finds_it(names: list[str]) -> None:
    label_map = LabelMap.from_names(names)
    for info in label_map.classes:
        try:
            word = label_map.word_for(info)
        except UsageError:
            assert [other for other in label_map.classes if other.name == str(info.id)] != []
        else:
            assert label_map.find(word) == info


def test_a_class_that_no_word_finds_is_refused() -> None:
    label_map = LabelMap.from_names(["road", "cat", "Cat", "2"])
    assert [label_map.word_for(info) for info in label_map.classes[:2]] == ["road", "cat"]
    with pytest.raises(UsageError, match="class 2 cannot be asked for: its name 'Cat' and its id are names of other"):
        label_map.word_for(label_map.classes[2])


def test_a_class_that_is_not_there_is_answered_with_the_closest() -> None:
    with pytest.raises(UsageError, match=r"no class 'dgo' in the model; did you mean dog\?"):
        LABELS.find("dgo")
    with pytest.raises(UsageError, match="there are background, Cat, dog"):
        LABELS.find("17")


def test_long_lists_of_choices_are_cut() -> None:
    assert closest("zzz", [f"x{i}" for i in range(11)]).endswith("x9, ...")


@given(st.lists(st.integers(0, 2), min_size=1, max_size=50))
def test_areas_add_up_to_the_image(ids: list[int]) -> None:
    class_map = np.array([ids], np.uint8)
    segmentation = Segmentation(class_map, np.zeros((3, 1, 1), np.float32), None, LABELS)
    assert [area.info.id for area in segmentation.classes] == sorted(set(ids))
    assert sum(area.pixels for area in segmentation.classes) == class_map.size
    assert sum(area.fraction for area in segmentation.classes) == pytest.approx(1)
    assert all(area.pixels == ids.count(area.info.id) for area in segmentation.classes)


@given(
    npst.arrays(
        np.float32, st.tuples(st.just(3), st.integers(1, 4), st.integers(1, 4)), elements=st.floats(-1e6, 1e6, width=32)
    )
)
def test_probabilities_are_the_softmax_however_large_the_scores(scores: NDArray[np.float32]) -> None:
    segmentation = Segmentation(np.zeros((1, 1), np.uint8), scores, None, LABELS)
    exact = np.exp(scores.astype(np.float64) - scores.max(axis=0))
    assert segmentation.probabilities.dtype == np.float32
    np.testing.assert_allclose(segmentation.probabilities, exact / exact.sum(axis=0), atol=1e-6)


def test_probabilities_are_computed_in_bands_between_which_a_check_may_end_them() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 1000, 1000)).astype(np.float32)
    segmentation = Segmentation(np.zeros((1, 1), np.uint8), scores, None, LABELS)
    for count in range(3):
        with pytest.raises(IndexError):
            segmentation.probabilities_while(list(range(count)).pop)
    left = list(range(3))
    found = segmentation.probabilities_while(left.pop)
    assert found is segmentation.probabilities is segmentation.probabilities_while([].pop)
    exact = np.exp(scores.astype(np.float64) - scores.max(axis=0))
    np.testing.assert_allclose(found, exact / exact.sum(axis=0), atol=1e-6)


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_where_scores_are_no_numbers_no_class_is_probable_and_elsewhere_all_is_as_ever(score: float) -> None:
    heatmap = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    plain = Segmentation(np.zeros((4, 5), np.uint8), heatmap.copy(), None, LABELS).probabilities
    heatmap[1, 2, 3] = score
    found = Segmentation(np.zeros((4, 5), np.uint8), heatmap, None, LABELS)
    assert not found.probabilities[:, 2, 3].any()
    plain[:, 2, 3] = 0
    assert np.array_equal(found.probabilities, plain)
    assert [peak.probability for peak in found.strongest(3)] == sorted(plain.max(axis=(1, 2)).tolist(), reverse=True)


def test_the_strongest_classes_are_those_most_probable_anywhere() -> None:
    scores = np.array([[[9, 0, 0]], [[0, 0, 3]], [[0, 9, 0]]], np.float32)
    segmentation = Segmentation(np.zeros((1, 3), np.uint8), scores, None, LABELS)
    assert [peak.info.name for peak in segmentation.strongest(5)] == ["background", "dog", "Cat"]
    (first,) = segmentation.strongest(1)
    assert first.probability == pytest.approx(np.exp(9) / (np.exp(9) + 2))


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 256),
    st.integers(1, 20),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 2**32 - 1),
)
def test_ids_are_counted(height: int, width: int, count: int, run: int, dtype: type[np.uint8], seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, count, (height, width)).astype(dtype).repeat(run, 1)
    for class_map in (ids, ids[::2], ids[:, ::-1]):
        assert count_ids(class_map, count).tolist() == [int((class_map == i).sum()) for i in range(count)]


@pytest.mark.parametrize("shape", [(3, 2**23), (2**23, 3), (1, 2**24 + 1), (0, 5)])
def test_ids_are_counted_in_any_number(shape: tuple[int, int]) -> None:
    class_map = np.full(shape, 3, np.uint8)
    class_map[:, -1] = 1
    assert count_ids(class_map, 5).tolist() == [0, shape[0], 0, shape[0] * (shape[1] - 1), 0]

import tracemalloc
import warnings
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from fcnseg import rle
from fcnseg.errors import MaskError
from fcnseg.types import ClassMap

DTYPES = [np.uint8, np.uint16]


@st.composite
def class_maps(draw: st.DrawFn) -> ClassMap:
    """Class maps of patches, so that runs have many lengths; ids are few or any."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
    largest = draw(st.sampled_from([1, 3, int(np.iinfo(dtype).max)]))
    ids = draw(hnp.arrays(dtype, shape, elements=st.integers(0, largest)))
    patches: ClassMap = ids.repeat(draw(st.integers(1, 9)), axis=0).repeat(draw(st.integers(1, 9)), axis=1)
    return patches


def theirs(mask: NDArray[np.bool_]) -> bytes:
    return bytes(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"])


def compress(counts: list[int], shape: tuple[int, int]) -> bytes:
    return bytes(coco_mask.frPyObjects({"size": list(shape), "counts": counts}, *shape)["counts"])


@given(class_maps())
def test_a_class_map_comes_back_as_it_was(class_map: ClassMap) -> None:
    decoded = rle.decode(rle.encode(class_map), shape=class_map.shape, dtype=class_map.dtype)
    assert decoded.dtype == class_map.dtype
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, class_map)


@given(class_maps(), st.data())
def test_pixels_of_the_other_id_are_in_no_mask_and_come_back(class_map: ClassMap, data: st.DataObject) -> None:
    other = data.draw(st.sampled_from([*np.unique(class_map).tolist(), int(np.iinfo(class_map.dtype).max)]))
    runs = rle.encode(class_map, other)
    assert list(runs) == [i for i in np.unique(class_map).tolist() if i != other]
    decoded = rle.decode(runs, shape=class_map.shape, dtype=class_map.dtype, other_id=other)
    np.testing.assert_array_equal(decoded, class_map)


@given(class_maps())
def test_each_mask_has_the_bytes_that_pycocotools_gives_it(class_map: ClassMap) -> None:
    assert rle.encode(class_map) == {int(i): theirs(class_map == i) for i in np.unique(class_map)}


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_layout_of_the_memory_does_not_matter(order: str) -> None:
    class_map = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    laid_out = np.asarray(class_map, order=order)  # type: ignore[call-overload]
    assert rle.encode(laid_out[:, ::-1]) == rle.encode(np.ascontiguousarray(class_map[:, ::-1]))


def test_long_and_short_runs_alternate_without_loss() -> None:
    lengths = [1, 2**19, 3, 2**18, 2**19 + 1, 1, 2**18 - 6]
    class_map = np.repeat(np.arange(7) % 3, lengths).astype(np.uint8).reshape(-1, 1)
    runs = rle.encode(class_map)
    assert runs == {i: theirs(class_map == i) for i in range(3)}
    np.testing.assert_array_equal(rle.decode(runs, shape=class_map.shape, dtype=np.uint8), class_map)


def test_no_pixels_are_no_masks() -> None:
    for shape in ((0, 5), (5, 0)):
        assert rle.encode(np.zeros(shape, np.uint8)) == {}
        assert rle.decode({}, shape=shape, dtype=np.uint8).shape == shape


def test_no_masks_are_pixels_of_the_other_id_alone() -> None:
    assert rle.decode({}, shape=(2, 3), dtype=np.uint16, other_id=9).tolist() == [[9] * 3] * 2


def test_more_pixels_than_their_tools_hold_are_refused() -> None:
    class_map = np.broadcast_to(np.uint8(0), (2**13, 2**13 + 1))
    with pytest.raises(MaskError, match="take another encoding"):
        rle.encode(class_map)


SHAPE = (4, 5)
WHOLE = compress([0, 20], SHAPE)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({}, "leave 20 of 20 pixels without a class"),
        ({1: b""}, "0 bytes"),
        ({1: b"0" * 200}, "200 bytes"),
        ({1: b"\x00"}, "not COCO's text"),
        ({1: b"\xff\xff"}, "not COCO's text"),
        ({1: WHOLE + b"P"}, "cut short"),
        ({1: b"PPPPPPPPP0"}, "a number beyond all images"),
        ({1: compress([0, 19], SHAPE)}, "not those of a mask of 20 pixels"),
        ({1: compress([0, 21], SHAPE)}, "not those of a mask of 20 pixels"),
        ({1: compress([0, 10, 0, 10], SHAPE)}, "not those of a mask of 20 pixels"),
        ({1: b"N6"}, "not those of a mask of 20 pixels"),
        ({1: compress([0, 10, 10], SHAPE)}, "leave 10 of 20 pixels"),
        ({1: WHOLE, 2: compress([19, 1], SHAPE)}, "overlap"),
        ({1: compress([0, 10, 10], SHAPE), 2: compress([9, 10, 1], SHAPE)}, "overlap"),
        ({256: WHOLE}, "id 256, which is no class of uint8"),
        ({-1: WHOLE}, "id -1"),
    ],
)
def test_what_is_no_class_map_of_the_shape_is_refused(runs: Mapping[int, bytes], message: str) -> None:
    with pytest.raises(MaskError, match=message):
        rle.decode(runs, shape=SHAPE, dtype=np.uint8)


def test_a_mask_of_the_other_id_is_refused() -> None:
    with pytest.raises(MaskError, match="id 1"):
        rle.decode({1: WHOLE}, shape=SHAPE, dtype=np.uint8, other_id=1)


def test_a_shape_beyond_all_images_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(MaskError, match="beyond the limit"):
        rle.decode({}, shape=(2**32 - 1, 2**32 - 1), dtype=np.uint8, other_id=0)


texts = st.binary(max_size=40) | st.text("0123PQRSTUOo\\", max_size=40).map(str.encode)


@given(st.dictionaries(st.integers(0, 300), texts), st.none() | st.integers(0, 255))
def test_random_bytes_are_a_class_map_or_a_mask_error(runs: dict[int, bytes], other_id: int | None) -> None:
    with suppress(MaskError):
        assert rle.decode(runs, shape=SHAPE, dtype=np.uint8, other_id=other_id).shape == SHAPE


@given(class_maps(), st.data())
def test_mutated_bytes_never_pass_as_another_length(class_map: ClassMap, data: st.DataObject) -> None:
    runs = rle.encode(class_map)
    changed = data.draw(st.sampled_from(list(runs)))
    text = bytearray(runs[changed])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.integers(0, 255))
    runs[changed] = bytes(text[: data.draw(st.integers(0, len(text)))])
    try:
        decoded = rle.decode(runs, shape=class_map.shape, dtype=class_map.dtype)
    except MaskError:
        return
    # What passes is what pycocotools reads too.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy's, in pycocotools
        for class_id, counts in runs.items():
            mask = coco_mask.decode({"size": list(class_map.shape), "counts": counts})
            np.testing.assert_array_equal(decoded == class_id, mask)


def test_memory_is_bounded_by_the_shape_whatever_the_bytes_say() -> None:
    hostile = [
        dict.fromkeys(range(200), b"0" * 100_000),
        {1: b"oooooo?" * 10_000},
        dict.fromkeys(range(200), WHOLE),
    ]
    tracemalloc.start()
    for runs in hostile:
        with pytest.raises(MaskError):
            rle.decode(runs, shape=SHAPE, dtype=np.uint8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("other_id", [-1, 256, 65_535])
def test_an_id_of_other_pixels_that_the_type_cannot_hold_is_refused(other_id: int) -> None:
    with pytest.raises(MaskError, match=f"the id of other pixels is {other_id}, which uint8 cannot hold"):
        rle.decode({}, shape=(1, 1), dtype=np.uint8, other_id=other_id)

"""COCO's polygons and run lengths, in the folders that COCO, CVAT, Label Studio and Roboflow write."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from fcnseg.errors import DatasetError
from training.coco_masks import CocoMask
from training.contents import check_samples
from training.data import fingerprint, open_dataset
from training.samples import read_sample

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}]


def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def encode(inside: np.ndarray, *, compressed: bool) -> dict[str, Any]:
    """Run lengths of a mask, counted here from the pixels, down one column after the other."""
    flat = inside.T.reshape(-1).astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    counts = np.diff([0, *edges, flat.size]).tolist()
    size = list(inside.shape)
    if not compressed:
        return {"size": size, "counts": counts}
    text = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"]
    return {"size": size, "counts": text.decode()}


def annotate(segmentation: object, category: int, image: int = 1, **more: object) -> dict[str, Any]:
    return {"id": 7, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **more}


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def write_file(path: Path, names: list[str], annotations: list[dict[str, Any]], **more: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(names, 1)]
    path.write_text(
        json.dumps({"info": {}, "images": entries, "annotations": annotations, "categories": CATEGORIES, **more})
    )


def read_one(root: Path, annotations: list[dict[str, Any]], **more: object) -> np.ndarray:
    """The mask of one image with these annotations."""
    write_image(root / "train2017" / "a.jpg")
    write_file(root / "annotations" / "instances_train2017.json", ["a.jpg"], annotations, **more)
    dataset = open_dataset(root)
    check_samples(dataset.split("train"), dataset.label_map)
    return read_sample(dataset.split("train")[0])[1]


def test_cocos_own_folders_give_background_and_the_categories_in_the_order_of_their_ids(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / f"{split}2017" / "a.jpg")
        write_file(
            tmp_path / "annotations" / f"instances_{split}2017.json", ["a.jpg"], [annotate([box(0, 0, 4, 4)], 18)]
        )
        write_file(tmp_path / "annotations" / f"captions_{split}2017.json", ["a.jpg"], [])
    dataset = open_dataset(tmp_path)
    assert set(dataset.splits) == {"train", "val"}
    assert [info.name for info in dataset.label_map.classes] == ["background", "car", "dog", "toothbrush"]
    assert dataset.label_map.ignore_id == 255
    assert dataset.split("val")[0].image == tmp_path / "val2017" / "a.jpg"


def test_polygons_and_both_run_length_forms_fill_their_pixels(tmp_path: Path) -> None:
    inside = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
    inside[:, :15] = False
    corner = np.zeros_like(inside)
    corner[0, 0] = corner[18:, 0] = True
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:7, 3:9] = expected[10:12, 3:5] = 2
    expected[inside] = 1
    expected[corner] = 3
    mask = read_one(
        tmp_path,
        [
            annotate([box(3, 2, 9, 7), box(3, 10, 5, 12)], 18),
            annotate(encode(inside, compressed=True), 3, iscrowd=1),
            annotate(encode(corner, compressed=False), 90, iscrowd=1),
        ],
    )
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("order", [1, -1])
def test_smaller_objects_lie_over_larger_ones_and_later_over_earlier_of_one_size(tmp_path: Path, order: int) -> None:
    small, large = annotate([box(5, 5, 8, 8)], 3, area=9e9), annotate([box(0, 0, 20, 20)], 18, area=1)
    mask = read_one(tmp_path, [small, large][::order])
    assert (mask[6, 6], mask[0, 0]) == (1, 2)
    equal = [annotate([box(0, 0, 6, 6)], 3), annotate([box(3, 0, 9, 6)], 18)][::order]
    assert read_one(tmp_path, equal)[2, 4] == (2 if order == 1 else 1)


@st.composite
def annotations_of_any_kind(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for i in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            number = st.floats(-20, 40, width=32)
            outline = st.lists(st.tuples(number, number), min_size=3, max_size=8).map(
                lambda p: [c for xy in p for c in xy]
            )
            segmentation: Any = draw(st.lists(outline, min_size=1, max_size=3))
        else:
            bits = draw(st.integers(0, 2**64 - 1))
            inside = np.random.default_rng(bits).random((HEIGHT, WIDTH)) < draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
            segmentation = encode(inside, compressed=draw(st.booleans()))
        found.append(annotate(segmentation, draw(st.sampled_from([3, 18, 90])), id=i))
    return found


@settings(suppress_health_check=[HealthCheck.too_slow])  # a loaded machine is slow, not the strategy
@given(annotations_of_any_kind())
def test_masks_equal_those_of_pycocotools(
    tmp_path_factory: pytest.TempPathFactory, annotations: list[dict[str, Any]]
) -> None:
    found = read_one(tmp_path_factory.getbasetemp() / "coco", annotations)
    planes = []
    for annotation in annotations:
        encoded = (
            coco_mask.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH)
            if not isinstance(annotation["segmentation"], dict)
            or isinstance(annotation["segmentation"]["counts"], list)
            else annotation["segmentation"]
        )
        merged = coco_mask.merge(encoded) if isinstance(encoded, list) else encoded
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of numpy's, in pycocotools
            planes.append((coco_mask.decode(merged).astype(bool), {3: 1, 18: 2, 90: 3}[annotation["category_id"]]))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for inside, class_id in sorted(planes, key=lambda plane: -plane[0].sum()):
        expected[inside] = class_id
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("images", ["images/default", "images"])
def test_cvats_single_file_is_split_by_name(tmp_path: Path, images: str) -> None:
    names = [f"{i}.png" for i in range(12)]
    for name in names:
        write_image(tmp_path / images / name)
    write_file(tmp_path / "annotations" / "instances_default.json", names, [annotate([box(0, 0, 2, 2)], 3)])
    dataset = open_dataset(tmp_path)
    assert {s.name for samples in dataset.splits.values() for s in samples} == set(names)
    assert "by a hash of their names" in str(dataset.note)


@pytest.mark.parametrize("prefix", ["images/", "images\\", "../../label-studio/data/media/upload/1/", ""])
def test_label_studios_result_json_is_read_whatever_path_it_writes(tmp_path: Path, prefix: str) -> None:
    names = ["1f-a.jpg", "2b-b.jpg", "3c-c.jpg"]
    for name in names:
        write_image(tmp_path / "images" / name)
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "Background"}]
    annotations = [annotate([box(0, 0, 4, 4)], 0, image=i) for i in (1, 2, 3)]
    write_file(tmp_path / "result.json", [prefix + name for name in names], annotations, categories=categories)
    dataset = open_dataset(tmp_path)
    samples = [s for split in dataset.splits.values() for s in split]
    assert {s.image for s in samples} == {tmp_path / "images" / name for name in names}
    assert [info.name for info in dataset.label_map.classes] == ["background", "cat"]
    assert [int(read_sample(s)[1].sum()) for s in samples] == [16, 16, 16]


def test_roboflows_folder_for_each_split_is_read(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_image(tmp_path / split / f"{split}.jpg")
        write_file(tmp_path / split / "_annotations.coco.json", [f"{split}.jpg"], [])
    dataset = open_dataset(tmp_path)
    assert {split: samples[0].name for split, samples in dataset.splits.items()} == {
        "train": "train.jpg",
        "val": "valid.jpg",
    }


def test_one_file_of_roboflows_name_among_annotations_is_read_once(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "images" / name)
    write_file(tmp_path / "annotations" / "_annotations.coco.json", ["a.jpg", "b.jpg"], [])
    assert set(open_dataset(tmp_path).splits) == {"train", "val"}


def test_an_image_without_annotations_is_background(tmp_path: Path) -> None:
    assert read_one(tmp_path, []).tolist() == np.zeros((HEIGHT, WIDTH)).tolist()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "annotation 7 .* only a box"),
        (None, "annotation 7 .* only a box"),
        ([[1, 1, 5, 5]], "polygon of 4 numbers"),
        ([[1, 1, 5, 5, 3, 2, 1]], "polygon of 7 numbers"),
        ([1, 1, 5, 5, 3, 2], "not of COCO's form"),
        ([["a", 1, 5, 5, 3, 2]], "not of COCO's form"),
        ({"counts": [1, 2]}, "not of COCO's form"),
        ({"size": [HEIGHT, WIDTH], "counts": [1.5, 2]}, "not of COCO's form"),
        ([box(0, 0, 1e9, 5)], r"a\.jpg has the point \(1e\+09, 0\), but the image has 30x20"),
        ([box(0, 0, float("nan"), 5)], r"the point \(nan, 0\)"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 20]}, "fill 30 pixels, but the image has 30x20"),
        ({"size": [HEIGHT, WIDTH], "counts": [700, -100]}, "run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": [2**62, 2**62, 2**62, 2**62, 600]}, f"run lengths, one .* {2**62} pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": "52"}, "run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "ppppppppppppppppppp"}, "run lengths"),
        ({"size": [WIDTH, HEIGHT], "counts": [600]}, "encoded for 20x30 pixels"),
    ],
)
def test_a_segmentation_that_cannot_be_drawn_is_named_before_training(
    tmp_path: Path, segmentation: object, message: str
) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read_one(tmp_path, [annotate(segmentation, 3)])
    assert "instances_train2017.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "content", "message"),
    [
        (annotate([box(0, 0, 2, 2)], 4), {}, "annotation 7 has category_id 4, which the file does not define"),
        (annotate([box(0, 0, 2, 2)], 3, image=9), {}, "annotation 7 has image_id 9"),
        (annotate([box(0, 0, 2, 2)], 3, image_id=[1]), {}, r"image_id \[1\], which is no whole number"),
        (annotate([box(0, 0, 2, 2)], 3, image_id=1.0), {}, r"image_id 1\.0, which is no whole number"),
        (
            annotate([box(0, 0, 2, 2)], 3),
            {"images": [{"id": 1.0, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}]},
            r"images\.0\.id\.int: Input should be a valid integer",
        ),
        (
            annotate([box(0, 0, 2, 2)], 3, category_id="3"),
            {"categories": [{"id": "3", "name": "car"}]},
            r"categories\.0\.id: Input should be a valid integer",
        ),
        ({"id": 7, "image_id": 1}, {}, r"annotations\.0 has no image_id or no category_id"),
        (annotate([box(0, 0, 2, 2)], 3), {"categories": []}, "categories are missing"),
        (
            annotate([box(0, 0, 2, 2)], 3),
            {"images": 2 * [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}]},
            "two images share an id",
        ),
        (
            annotate([box(0, 0, 2, 2)], 3),
            {"categories": [*CATEGORIES, {"id": 4, "name": "car"}]},
            "share an id or a name",
        ),
        (annotate([box(0, 0, 2, 2)], 3), {"images": [{"id": 1, "file_name": "a.jpg"}]}, r"images\.0\.height"),
        (
            annotate([box(0, 0, 2, 2)], 3),
            {"images": [{"id": 1, "file_name": "a.jpg", "height": 10**6, "width": 10**6}]},
            "1000000x1000000 pixels, more than the limit",
        ),
        (
            annotate([box(0, 0, 2, 2)], 3),
            {"categories": [{"id": i, "name": str(i)} for i in range(300)]},
            "301 classes",
        ),
    ],
)
def test_a_file_whose_entries_do_not_fit_is_refused_with_the_entry(
    tmp_path: Path, annotation: dict[str, Any], content: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_one(tmp_path, [annotation], **content)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    read_one(tmp_path, [])
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"instances_train2017\.json: cannot be read as COCO annotations"):
        open_dataset(tmp_path)


def test_an_image_of_another_size_than_annotated_is_refused_with_both(tmp_path: Path) -> None:
    entry = {"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH + 1}
    with pytest.raises(DatasetError, match=r"mask of a\.jpg in .*json is 31x20 but its image a\.jpg is 30x20"):
        read_one(tmp_path, [], images=[entry])


def test_an_image_that_is_missing_or_named_twice_is_told(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_file(tmp_path / "train.json", ["a.jpg", "b.jpg"], [])
    with pytest.raises(DatasetError, match=r"'b\.jpg' in train\.json has no image in .*images"):
        open_dataset(tmp_path)
    write_file(tmp_path / "train.json", ["a.jpg", "sub/a.jpg"], [])
    with pytest.raises(DatasetError, match=r"a\.jpg twice, as 'a\.jpg' and 'sub/a\.jpg'"):
        open_dataset(tmp_path)


def test_an_image_whose_name_no_file_can_have_is_missing_as_others_are(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    address = f"https://storage.example/b.jpg?signature={300 * 'f'}"
    write_file(tmp_path / "train.json", ["a.jpg", address], [])
    with pytest.raises(DatasetError, match=r"f' in train\.json has no image in .*images"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, lenient=True)
    assert [sample.name for sample in dataset.split("train")] == ["a.jpg"]


def test_files_that_differ_in_categories_or_share_a_split_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_file(tmp_path / "train.json", ["a.jpg"], [])
    write_file(tmp_path / "val.json", ["a.jpg"], [], categories=CATEGORIES[:2])
    with pytest.raises(DatasetError, match=r"train\.json and .*val\.json differ in their categories"):
        open_dataset(tmp_path)
    write_file(tmp_path / "train2017.json", ["a.jpg"], [])
    with pytest.raises(DatasetError, match="both split 'train'"):
        open_dataset(tmp_path)


def test_other_json_is_no_annotation_file_and_classes_of_ones_own_are_refused(tmp_path: Path) -> None:
    read_one(tmp_path, [])
    (tmp_path / "metadata.json").write_text('{"images": 3, "by": "hand"}')
    assert open_dataset(tmp_path).split("train")
    (tmp_path / "classes.json").write_text('{"names": ["a", "b"]}')
    with pytest.raises(DatasetError, match=r"classes\.json does not go with COCO"):
        open_dataset(tmp_path)


def test_the_fingerprint_follows_the_annotations_and_a_mask_survives_the_way_to_another_process(tmp_path: Path) -> None:
    def digest(*annotations: dict[str, Any]) -> str:
        read_one(tmp_path, list(annotations))
        return fingerprint(open_dataset(tmp_path), ["train"])

    outlined, other = annotate([box(0, 0, 2, 2)], 3), annotate([box(0, 0, 2, 3)], 3)
    runs = [annotate(encode(np.eye(HEIGHT, WIDTH) > 0, compressed=compressed), 3) for compressed in (True, False)]
    assert digest(outlined) == digest({**outlined, "id": 8, "area": 4})
    assert len({digest(outlined), digest(other), digest({**outlined, "category_id": 18}), *map(digest, runs)}) == 5
    mask = open_dataset(tmp_path).split("train")[0].mask
    assert isinstance(mask, CocoMask)
    assert (pickle.loads(pickle.dumps(mask)).read() == mask.read()).all()  # noqa: S301  # our own bytes

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from fcnseg.errors import DatasetError
from fcnseg.masks import Encoding, encode
from fcnseg.types import LabelMap
from training.contents import check_samples
from training.data import Dataset, fingerprint, open_dataset
from training.mask_files import MaskFile
from training.samples import Sample, read_sample

LABELS = LabelMap.from_names(["ground", "thing", "other"], ignore_id=255)

AUGMENTED: dict[str, Any] = {"scale_jitter": (0.75, 1.5), "flip": True, "colour_jitter": 0.25}


def write_image(path: Path, height: int = 20, width: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    cv2.imwrite(str(path), pixels)


def write_mask(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(ids.astype(np.uint8), Encoding.PNG, LABELS))


def some_ids(height: int = 20, width: int = 30) -> np.ndarray:
    return (np.arange(height * width) % 3).reshape(height, width)


def write_classes(root: Path, **content: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"names": ["ground", "thing", "other"], **content}))


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """images/ masks/ with split lists: two training images, one validation image, of three sizes."""
    root = tmp_path / "listed"
    for name, size in (("a", (20, 30)), ("b", (16, 16)), ("c", (24, 18))):
        write_image(root / "images" / f"{name}.png", *size)
        write_mask(root / "masks" / f"{name}.png", some_ids(*size))
    (root / "train.txt").write_text("a.png\nb\n\n")
    (root / "val.txt").write_text("c.png\n")
    write_classes(root)
    return root


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """The layout of SegNet's CamVid, JPEG images."""
    root = tmp_path / "folders"
    for split in ("train", "val"):
        write_image(root / split / "x.jpg")
        write_mask(root / f"{split}annot" / "x.png", some_ids())
    write_classes(root)
    return root


def check_all(dataset: Dataset) -> None:
    for samples in dataset.splits.values():
        check_samples(samples, dataset.label_map)


def test_split_lists_are_found_with_or_without_suffixes(listed: Path) -> None:
    dataset = open_dataset(listed)
    assert [sample.name for sample in dataset.split("train")] == ["a.png", "b.png"]
    assert [sample.name for sample in dataset.split("val")] == ["c.png"]
    assert dataset.label_map == LABELS
    check_all(dataset)


def test_the_camvid_layout_is_found_and_images_match_masks_of_another_suffix(folders: Path) -> None:
    dataset = open_dataset(folders)
    assert set(dataset.splits) == {"train", "val"}
    assert dataset.split("train")[0].mask.name == "x.png"
    check_all(dataset)


def test_void_is_the_ignore_id_and_no_class(listed: Path) -> None:
    write_classes(listed, palette_rgb=[[0, 0, 0], [1, 2, 3], [4, 5, 6]], void=2)
    dataset = open_dataset(listed)
    assert [info.name for info in dataset.label_map.classes] == ["ground", "thing"]
    assert dataset.label_map.ignore_id == 2
    assert dataset.label_map.classes[1].colour == (1, 2, 3)
    contents = check_samples(dataset.split("train"), dataset.label_map)
    ids = np.concatenate([some_ids(20, 30).reshape(-1), some_ids(16, 16).reshape(-1)])
    assert (*contents.class_pixels, contents.ignored_pixels) == tuple(np.bincount(ids))
    assert contents.images == 2


def test_without_classes_json_the_training_masks_tell_the_classes(listed: Path) -> None:
    (listed / "classes.json").unlink()
    label_map = open_dataset(listed).label_map
    assert [info.name for info in label_map.classes] == ["class 0", "class 1", "class 2"]
    assert label_map.ignore_id == 255


def test_a_palette_mask_is_read_as_ids_and_never_as_colours(listed: Path) -> None:
    palette = Image.new("P", (30, 20))
    palette.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    palette.putdata(some_ids().reshape(-1).tolist())
    palette.save(listed / "masks" / "a.png")
    _, mask = read_sample(open_dataset(listed).split("train")[0])
    np.testing.assert_array_equal(mask, some_ids())


@pytest.mark.parametrize(
    ("folder", "words"), [("images", ["a.png", "images"]), ("masks", ["a.png", "masks", "no mask"])]
)
def test_a_listed_file_that_is_missing_is_named(listed: Path, folder: str, words: list[str]) -> None:
    (listed / folder / "a.png").unlink()
    with pytest.raises(DatasetError) as caught:
        open_dataset(listed)
    assert all(word in str(caught.value) for word in words)


def list_a_test_image(listed: Path, folders: Path) -> Path:
    write_image(listed / "images" / "t.png")
    (listed / "test.txt").write_text("t.png\n")
    return listed


def add_a_folder_of_test_images(listed: Path, folders: Path) -> Path:
    """With a folder for each split in images/ and masks/, but for the test images."""
    root = folders.with_name("nested")
    for split in ("train", "val"):
        shutil.copytree(folders / split, root / "images" / split)
        shutil.copytree(folders / f"{split}annot", root / "masks" / split)
    write_image(root / "images" / "test" / "t.png")
    write_classes(root)
    return root


def mask_one_of_two_test_images(listed: Path, folders: Path) -> Path:
    for name in ("t", "u"):
        write_image(folders / "test" / f"{name}.png")
    write_mask(folders / "testannot" / "t.png", some_ids())
    return folders


@pytest.mark.parametrize(
    "add_test_images", [list_a_test_image, add_a_folder_of_test_images, mask_one_of_two_test_images]
)
def test_a_split_without_masks_stands_in_the_way_of_those_alone_who_want_it(
    listed: Path, folders: Path, add_test_images: Callable[[Path, Path], Path]
) -> None:
    root = add_test_images(listed, folders)
    for needed in (None, ("train", "test")):
        with pytest.raises(DatasetError, match="has no (mask|namesake)"):
            open_dataset(root, needed)
    dataset = open_dataset(root, ("train", "val"))
    assert {"train", "val"} <= set(dataset.splits)
    assert all(dataset.splits.values())
    assert [lone.split for lone in dataset.unpaired] == ["test"]
    check_all(dataset)


def test_what_has_no_split_stands_in_everybodys_way(folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "plain"
    shutil.copytree(folders / "train", root / "images")
    shutil.copytree(folders / "trainannot", root / "masks")
    write_image(root / "images" / "lonely.jpg")
    with pytest.raises(DatasetError, match=r"lonely\.jpg has no mask"):
        open_dataset(root, ("train", "val"))


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_named(folders: Path) -> None:
    write_image(folders / "train" / "lonely.jpg")
    with pytest.raises(DatasetError, match=r"lonely\.jpg has no mask"):
        open_dataset(folders)
    (folders / "train" / "lonely.jpg").unlink()
    write_mask(folders / "valannot" / "widowed.png", some_ids())
    with pytest.raises(DatasetError, match=r"widowed\.png has no image"):
        open_dataset(folders)


def test_a_mask_of_another_size_is_named_with_both_sizes(listed: Path) -> None:
    write_mask(listed / "masks" / "b.png", some_ids(15, 16))
    with pytest.raises(DatasetError, match=r"b\.png is 16x15 but its image b\.png is 16x16"):
        check_all(open_dataset(listed))


def test_ids_outside_the_classes_are_named_with_their_pixels(listed: Path) -> None:
    ids = some_ids()
    ids[0, :4], ids[1, 0] = 7, 9
    write_mask(listed / "masks" / "a.png", ids)
    with pytest.raises(DatasetError, match=r"a\.png has ids 7, 9 on 5 pixels where the classes are 0 to 2") as caught:
        check_all(open_dataset(listed))
    assert "binary" not in str(caught.value)


def test_a_binary_mask_is_recognised_as_such(listed: Path) -> None:
    write_classes(listed, void=3)
    write_mask(listed / "masks" / "a.png", 255 * (some_ids() == 1))
    with pytest.raises(DatasetError, match=r"ids 255 on .*0/255 binary mask\?"):
        check_all(open_dataset(listed))


def test_binary_masks_without_classes_json_are_recognised_as_such(listed: Path) -> None:
    (listed / "classes.json").unlink()
    for name, size in (("a", (20, 30)), ("b", (16, 16))):
        write_mask(listed / "masks" / f"{name}.png", 255 * (some_ids(*size) == 1))
    with pytest.raises(DatasetError, match=r"0/255 binary masks\?"):
        open_dataset(listed)


def test_a_colour_mask_is_refused_as_such(listed: Path) -> None:
    write_image(listed / "masks" / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png.*drawn in colours"):
        check_all(open_dataset(listed))


def test_an_unreadable_image_is_named_and_the_number_of_faults_told(listed: Path) -> None:
    for name in ("a", "b"):
        (listed / "images" / f"{name}.png").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"a\.png.*1 more of 2 samples are faulty"):
        check_all(open_dataset(listed))


def test_an_empty_split_is_refused(listed: Path) -> None:
    (listed / "val.txt").write_text("\n")
    with pytest.raises(DatasetError, match="split 'val' .* is empty"):
        open_dataset(listed)


def test_an_image_listed_twice_is_refused(listed: Path) -> None:
    (listed / "train.txt").write_text("a.png\na\n")
    with pytest.raises(DatasetError, match="again 'a'"):
        open_dataset(listed)


def test_a_folder_of_neither_layout_is_refused_with_both_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"train/ trainannot/.*train\.txt"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        open_dataset(tmp_path / "nowhere")


def test_a_mark_of_utf_8_before_lists_and_classes_is_passed_over(listed: Path) -> None:
    plain = open_dataset(listed)
    for name in ("train.txt", "val.txt", "classes.json"):
        (listed / name).write_text((listed / name).read_text("utf-8"), "utf-8-sig")
    assert open_dataset(listed) == plain


def test_an_unknown_split_names_those_there_are(listed: Path) -> None:
    with pytest.raises(DatasetError, match="train, val"):
        open_dataset(listed).split("zebra")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": ["a", "a"]}, "two classes"),
        ({"names": ["a"]}, "names"),
        ({"names": ["a", "b"], "palette_rgb": [[0, 0, 0]]}, "1 colours"),
        ({"names": ["a", "b"], "palette_rgb": [[0, 0, 300], [0, 0, 0]]}, r"palette_rgb\.0\.2"),
        ({"names": ["a", "b", "c"], "void": 0}, "void is 0"),
        ({"names": ["a", "void"], "void": 1}, "names one class and void"),
    ],
)
def test_a_wrong_classes_json_is_refused_with_the_field(listed: Path, content: dict[str, object], message: str) -> None:
    write_classes(listed, **content)
    with pytest.raises(DatasetError, match=message):
        open_dataset(listed)


def test_the_fingerprint_depends_on_names_and_contents_and_not_on_the_place(listed: Path, tmp_path: Path) -> None:
    before = fingerprint(open_dataset(listed), ["train", "val"])
    moved = tmp_path / "elsewhere"
    shutil.copytree(listed, moved)
    assert fingerprint(open_dataset(moved), ["val", "train"]) == before
    (moved / "train.txt").write_text("b\na\n")
    assert fingerprint(open_dataset(moved), ["train", "val"]) == before
    ids = some_ids()
    ids[0, 0] = 1
    write_mask(moved / "masks" / "a.png", ids)
    assert fingerprint(open_dataset(moved), ["train", "val"]) != before
    assert fingerprint(open_dataset(listed), ["train"]) != before


def test_crops_have_one_size_and_ids_that_the_mask_had_or_the_ignore_id(listed: Path) -> None:
    import torch

    from training.augment import TrainingCrops

    crops = TrainingCrops(open_dataset(listed).split("train"), 255, crop=(40, 48), **AUGMENTED)
    torch.manual_seed(0)
    pairs = [crops[i % 2] for i in range(20)]
    assert {tuple(image.shape) for image, _ in pairs} == {(3, 40, 48)}
    assert {tuple(mask.shape) for _, mask in pairs} == {(40, 48)}
    assert {int(i) for _, mask in pairs for i in mask.unique()} == {0, 1, 2, 255}


def test_augmentation_keeps_image_and_mask_aligned(tmp_path: Path) -> None:
    """A thing drawn white on black stays white where the mask says so, but for its resampled outline."""
    import torch

    from training.augment import TrainingCrops

    ids = np.zeros((60, 80), np.uint8)
    ids[20:45, 10:50] = 1
    write_mask(tmp_path / "m.png", ids)
    cv2.imwrite(str(tmp_path / "i.png"), np.repeat(255 * ids[..., None], 3, axis=2))
    crops = TrainingCrops(
        [Sample("i", tmp_path / "i.png", MaskFile(tmp_path / "m.png"))], 255, crop=(48, 48), **AUGMENTED
    )
    torch.manual_seed(0)
    for _ in range(20):
        image, mask = crops[0]
        inner = torch.nn.functional.max_pool2d((mask != 1).float()[None], 3, 1, 1)[0] == 0
        outer = torch.nn.functional.max_pool2d((mask != 0).float()[None], 3, 1, 1)[0] == 0
        level = image.float().mean(0)
        assert inner.sum() + outer.sum() > 200
        assert level[inner].min() > level[outer].max()


def test_augmentation_repeats_with_torchs_seed_and_varies_without(listed: Path) -> None:
    import torch

    from training.augment import TrainingCrops

    crops = TrainingCrops(open_dataset(listed).split("train"), 255, crop=(16, 16), **AUGMENTED)
    torch.manual_seed(3)
    first, second = crops[0], crops[0]
    torch.manual_seed(3)
    again = crops[0]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])


@pytest.mark.shared
@pytest.mark.parametrize(("name", "images", "classes"), [("camvid", (367, 101), 11), ("nuclei", (120, 20), 3)])
def test_real_data_passes_the_checks(shared_data: Path, name: str, images: tuple[int, int], classes: int) -> None:
    dataset = open_dataset(shared_data / name)
    assert (len(dataset.split("train")), len(dataset.split("val"))) == images
    assert len(dataset.label_map) == classes
    contents = check_samples(dataset.split("val"), dataset.label_map)
    assert min(contents.class_pixels) > 0

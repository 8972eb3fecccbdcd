"""Each layout is found, and gives the ids that were written into it, whatever form its masks have."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fcnseg.errors import DatasetError
from training.contents import check_samples
from training.data import Dataset, fingerprint, open_dataset
from training.samples import read_sample

SIZE = (12, 18)
CITYSCAPES_ROWS = {
    "unlabeled": (0, 255),
    "ego vehicle": (1, 255),
    "road": (7, 0),
    "sidewalk": (8, 1),
    "parking": (9, 255),
    "pole": (17, 5),
    "polegroup": (18, 255),
    "traffic light": (19, 6),
    "sky": (23, 10),
    "car": (26, 13),
    "bus": (28, 15),
    "caravan": (29, 255),
    "train": (31, 16),
    "bicycle": (33, 18),
}


def some_ids(seed: int, ids: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(ids, np.uint8), SIZE)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*SIZE, 3), 90, np.uint8))


def write_ids(path: Path, ids: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)
    return ids


def write_palette(path: Path, ids: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids)
    picture.putpalette(np.random.default_rng(5).integers(0, 256, 768, np.uint8).tobytes())
    picture.save(path)
    return ids


def write_colours(path: Path, ids: np.ndarray, palette: dict[int, tuple[int, int, int]]) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.zeros((*ids.shape, 3), np.uint8)
    for i, colour in palette.items():
        rgb[ids == i] = colour
    Image.fromarray(rgb).save(path)
    return ids


def write_lists(folder: Path, **names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, content in names.items():
        (folder / f"{split}.txt").write_text(content)


def masks_of(dataset: Dataset) -> dict[str, np.ndarray]:
    """The masks by image name, each checked against its image and the classes."""
    for samples in dataset.splits.values():
        check_samples(samples, dataset.label_map)
    return {sample.name: read_sample(sample)[1] for samples in dataset.splits.values() for sample in samples}


def require_equal(found: dict[str, np.ndarray], written: dict[str, np.ndarray]) -> None:
    assert found.keys() == written.keys()
    for name, ids in written.items():
        np.testing.assert_array_equal(found[name], ids, err_msg=name)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three images with palette masks, one image without a mask, and VOC's three lists."""
    root = tmp_path / "VOC2012"
    for i, name in enumerate("abc"):
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write_palette(root / "SegmentationClass" / f"{name}.png", some_ids(i, (0, 15, 20, 255)))
    write_image(root / "JPEGImages" / "for_detection_only.jpg")
    write_lists(root / "ImageSets" / "Segmentation", train="a\nb\n", val="c\n", trainval="a\nb\nc\n")
    return root


def test_split_lists_may_be_called_as_folders_of_splits_may(voc: Path) -> None:
    lists = voc / "ImageSets" / "Segmentation"
    for name, other in (("train", "Training"), ("val", "Validation")):
        (lists / f"{name}.txt").rename(lists / f"{other}.txt")
    assert set(open_dataset(voc).splits) == {"train", "val", "trainval"}
    write_lists(lists, train="a\n")
    with pytest.raises(DatasetError, match="both split 'train'"):
        open_dataset(voc)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Two cities, and a test split without annotations."""
    root = tmp_path / "cityscapes"
    values = tuple(i for i, _ in CITYSCAPES_ROWS.values())
    for i, (split, city) in enumerate((("train", "aachen"), ("train", "bochum"), ("val", "munster"))):
        scene = f"{city}_000000_000019"
        write_image(root / "leftImg8bit" / split / city / f"{scene}_leftImg8bit.png")
        write_ids(root / "gtFine" / split / city / f"{scene}_gtFine_labelIds.png", some_ids(i, values))
        write_ids(root / "gtFine" / split / city / f"{scene}_gtFine_instanceIds.png", some_ids(i))
    write_image(root / "leftImg8bit" / "test" / "berlin" / "berlin_000000_000019_leftImg8bit.png")
    return root


def write_flat(root: Path, count: int) -> dict[str, np.ndarray]:
    written = {}
    for i in range(count):
        write_image(root / "images" / f"scene {i}.png")
        written[f"scene {i}.png"] = write_ids(root / "masks" / f"scene {i}.png", some_ids(i))
    return written


def test_voc_gives_the_palette_indices_its_classes_and_its_lists(voc: Path) -> None:
    dataset = open_dataset(voc)
    assert {split: [s.name for s in samples] for split, samples in dataset.splits.items()} == {
        "train": ["a.jpg", "b.jpg"],
        "trainval": ["a.jpg", "b.jpg", "c.jpg"],
        "val": ["c.jpg"],
    }
    require_equal(masks_of(dataset), {f"{name}.jpg": some_ids(i, (0, 15, 20, 255)) for i, name in enumerate("abc")})
    classes = dataset.label_map.classes
    assert (len(classes), classes[0].name, classes[15].name, classes[20].name) == (
        21,
        "background",
        "person",
        "tvmonitor",
    )
    assert classes[15].colour == (192, 128, 128)
    assert dataset.label_map.ignore_id == 255
    assert dataset.note is None


def test_voc_masks_converted_to_rgb_give_the_same_ids_and_their_outlines_no_label(voc: Path) -> None:
    palette = {0: (0, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    for i, name in enumerate("abc"):
        write_colours(voc / "SegmentationClass" / f"{name}.png", some_ids(i, (0, 15, 20, 255)), palette)
    require_equal(
        masks_of(open_dataset(voc)), {f"{name}.jpg": some_ids(i, (0, 15, 20, 255)) for i, name in enumerate("abc")}
    )


def test_cvats_voc_export_takes_its_classes_and_colours_from_labelmap_txt(tmp_path: Path) -> None:
    palette = {0: (0, 0, 0), 1: (250, 50, 83), 2: (51, 221, 255)}
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:51,221,255::\n"
    )
    written = {}
    for i in range(12):
        write_image(tmp_path / "JPEGImages" / f"{i}.png")
        written[f"{i}.png"] = write_colours(tmp_path / "SegmentationClass" / f"{i}.png", some_ids(i), palette)
    write_lists(tmp_path / "ImageSets" / "Segmentation", default="".join(f"{i}\n" for i in range(12)))
    dataset = open_dataset(tmp_path)
    assert set(dataset.splits) == {"train", "val"}
    assert dataset.note is not None
    assert [(c.name, c.colour) for c in dataset.label_map.classes][1:] == [
        ("cat", (250, 50, 83)),
        ("dog", (51, 221, 255)),
    ]
    require_equal(masks_of(dataset), written)


def test_voc_without_lists_takes_what_has_a_mask(voc: Path) -> None:
    for path in (voc / "ImageSets" / "Segmentation").iterdir():
        path.unlink()
    assert set(masks_of(open_dataset(voc))) == {"a.jpg", "b.jpg", "c.jpg"}
    (voc / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DatasetError, match=r"mask b\.png has no image in .*JPEGImages"):
        open_dataset(voc)


def test_a_voc_list_that_names_what_is_not_there_is_refused(voc: Path) -> None:
    write_lists(voc / "ImageSets" / "Segmentation", val="c\nfor_detection_only\n")
    with pytest.raises(DatasetError, match=r"'for_detection_only' in val\.txt has no mask .*SegmentationClass"):
        open_dataset(voc)


def test_cityscapes_label_ids_become_train_ids_and_all_others_no_label(cityscapes: Path) -> None:
    dataset = open_dataset(cityscapes)
    train_ids = dict(CITYSCAPES_ROWS.values())
    found = masks_of(dataset)
    values = tuple(train_ids)
    for i, city in enumerate(("aachen", "bochum", "munster")):
        expected = np.vectorize(train_ids.__getitem__)(some_ids(i, values))
        np.testing.assert_array_equal(found[f"{city}_000000_000019_leftImg8bit.png"], expected)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 2, "val": 1}
    for name, (_, train_id) in CITYSCAPES_ROWS.items():
        assert train_id == 255 or dataset.label_map.classes[train_id].name == name
    assert len(dataset.label_map) == 19
    assert dataset.label_map.classes[13].colour == (0, 0, 142)


def test_a_cityscapes_image_without_label_ids_is_named_with_what_is_missing(cityscapes: Path) -> None:
    next(cityscapes.glob("gtFine/val/*/*labelIds.png")).unlink()
    with pytest.raises(DatasetError, match=r"munster_.*_leftImg8bit\.png has no \*_gtFine_labelIds\.png in .*val"):
        open_dataset(cityscapes)


def test_cityscapes_with_classes_of_ones_own_is_refused(cityscapes: Path) -> None:
    (cityscapes / "classes.json").write_text('{"names": ["a", "b"]}')
    with pytest.raises(DatasetError, match=r"classes\.json does not go with Cityscapes"):
        open_dataset(cityscapes)


def test_cityscapes_without_a_common_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit" / "train").mkdir(parents=True)
    (tmp_path / "gtFine" / "val").mkdir(parents=True)
    with pytest.raises(DatasetError, match="no split in common"):
        open_dataset(tmp_path)


def test_folders_without_lists_are_split_by_name_and_the_user_is_told(tmp_path: Path) -> None:
    written = write_flat(tmp_path, 60)
    dataset = open_dataset(tmp_path)
    require_equal(masks_of(dataset), written)
    assert 1 <= len(dataset.split("val")) <= 15
    assert f"{len(dataset.split('val'))} val by a hash" in str(dataset.note)
    assert "train.txt" in str(dataset.note)


def test_a_readme_and_a_label_map_are_no_split_lists(tmp_path: Path) -> None:
    written = write_flat(tmp_path, 3)
    (tmp_path / "README.txt").write_text("Three scenes.")
    (tmp_path / "labelmap.txt").write_text("a:0,0,0::\nb:1,1,1::\nc:2,2,2::\n")
    dataset = open_dataset(tmp_path)
    require_equal(masks_of(dataset), written)
    assert [info.name for info in dataset.label_map.classes] == ["a", "b", "c"]


def test_what_a_mac_puts_beside_each_file_is_no_part_of_the_data(voc: Path, cityscapes: Path, tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", 3)
    write_lists(tmp_path / "flat", train="scene 0\nscene 1\n", val="scene 2\n")
    roots = voc, cityscapes, tmp_path / "flat"
    plain = [open_dataset(root) for root in roots]
    for root in roots:
        for path in [path for path in root.rglob("*") if path.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X \xff")
    assert [open_dataset(root) for root in roots] == plain


def test_a_sample_keeps_its_side_when_others_are_added_or_images_change_their_format(tmp_path: Path) -> None:
    write_flat(tmp_path / "few", 40)
    write_flat(tmp_path / "many", 80)
    (tmp_path / "many" / "images" / "scene 3.png").rename(tmp_path / "many" / "images" / "scene 3.jpg")
    few, many = (
        {Path(s.name).stem: split for split, samples in open_dataset(tmp_path / name).splits.items() for s in samples}
        for name in ("few", "many")
    )
    assert set(few.values()) == {"train", "val"}
    assert few.items() <= many.items()


def test_two_images_give_one_for_each_split_and_one_is_refused(tmp_path: Path) -> None:
    write_flat(tmp_path / "two", 2)
    assert {split: len(samples) for split, samples in open_dataset(tmp_path / "two").splits.items()} == {
        "train": 1,
        "val": 1,
    }
    write_flat(tmp_path / "one", 1)
    with pytest.raises(DatasetError, match="1 images cannot be split"):
        open_dataset(tmp_path / "one")


def test_a_folder_for_each_split_within_images_and_masks_is_read(tmp_path: Path) -> None:
    written = {}
    for i, (split, name) in enumerate((("training", "a"), ("training", "b"), ("validation", "c"))):
        write_image(tmp_path / "images" / split / f"{name}.jpg")
        written[f"{name}.jpg"] = write_ids(tmp_path / "masks" / split / f"{name}.png", some_ids(i))
    dataset = open_dataset(tmp_path)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 2, "val": 1}
    require_equal(masks_of(dataset), written)
    write_image(tmp_path / "images" / "loose.jpg")
    with pytest.raises(DatasetError, match=r"loose\.jpg lies beside folders of splits"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(("images", "masks"), [("train", "trainannot"), ("images/train", "masks/train")])
def test_a_folder_among_the_images_of_a_split_is_not_passed_over(tmp_path: Path, images: str, masks: str) -> None:
    for name in ("a", "night/b"):
        write_image(tmp_path / images / f"{name}.jpg")
        write_ids(tmp_path / masks / f"{name}.png", some_ids(0))
    (tmp_path / images / ".cache").mkdir()
    with pytest.raises(DatasetError, match=r"night is a folder, and images are read from .*train itself; move its"):
        open_dataset(tmp_path)
    for folder in (images, masks):
        shutil.rmtree(tmp_path / folder / "night")
    assert [sample.name for sample in open_dataset(tmp_path).split("train")] == ["a.jpg"]


def test_a_split_folder_of_images_alone_and_two_of_one_split_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "train" / "a.jpg")
    write_ids(tmp_path / "masks" / "train" / "a.png", some_ids(0))
    write_image(tmp_path / "images" / "test" / "a.jpg")
    with pytest.raises(DatasetError, match="image folder test has no namesake in .*masks"):
        open_dataset(tmp_path)
    (tmp_path / "images" / "training").mkdir()
    with pytest.raises(DatasetError, match="train and training are both split 'train'"):
        open_dataset(tmp_path)


def test_several_layouts_at_once_are_refused_with_their_names(voc: Path) -> None:
    write_flat(voc, 2)
    with pytest.raises(DatasetError, match=r"images and masks \(.*\) and PASCAL VOC \(.*at once"):
        open_dataset(voc)


def test_a_folder_of_no_layout_is_told_with_its_content_and_all_layouts(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    for word in ("pictures/", "trainannot/", "masks/", "SegmentationClass/", "_gtFine_labelIds.png", "instances_train"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["annot", ".annot"])
def test_a_folder_that_is_called_annot_is_nobodys_mask_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / name).mkdir()
    with pytest.raises(DatasetError, match="none of the layouts"):
        open_dataset(tmp_path)


def test_a_folder_above_the_data_is_answered_with_the_folder_below(voc: Path) -> None:
    with pytest.raises(DatasetError, match=r"did you mean .*VOC2012\?"):
        open_dataset(voc.parent)


def test_train_tells_how_the_images_were_split(tmp_path: Path) -> None:
    from training.commands.train import train

    write_flat(tmp_path / "data", 12)
    run = CliRunner().invoke(
        train, [str(tmp_path / "data"), "--backbone", "no_such_net", "-o", str(tmp_path / "run")], catch_exceptions=True
    )
    assert "val by a hash of their names" in run.stderr


@pytest.mark.shared
def test_real_palette_masks_in_voc_folders_and_in_colours_give_the_same_ids(shared_data: Path, tmp_path: Path) -> None:
    """CamVid laid out anew as VOC with CVAT's colour masks, of which the independent reading is Pillow's."""
    source = shared_data / "camvid"
    classes = json.loads((source / "classes.json").read_text())
    lines = [
        f"{name}:{','.join(map(str, c))}::" for name, c in zip(classes["names"], classes["palette_rgb"], strict=True)
    ]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    written = {}
    for path in sorted((source / "valannot").iterdir())[:4]:
        written[path.name] = np.asarray(Image.open(path))
        write_colours(
            tmp_path / "SegmentationClass" / path.name, written[path.name], dict(enumerate(classes["palette_rgb"]))
        )
        (tmp_path / "JPEGImages").mkdir(exist_ok=True)
        image = next((source / "val").glob(f"{path.stem}.*"))
        (tmp_path / "JPEGImages" / image.name).symlink_to(image)
    write_lists(tmp_path / "ImageSets" / "Segmentation", train="\n".join(written))
    dataset = open_dataset(tmp_path)
    require_equal({Path(name).stem + ".png": ids for name, ids in masks_of(dataset).items()}, written)
    assert dataset.label_map.classes[11].name == "Unlabelled"
    assert len(fingerprint(dataset, ["train"])) == 64

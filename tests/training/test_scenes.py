import hashlib
from pathlib import Path

import numpy as np
import pytest

from fcnseg.errors import UsageError
from fcnseg.regions import Box
from training.contents import check_samples
from training.data import open_dataset
from training.scenes import CLASS_NAMES, LABEL_MAP, draw_scene, write_scenes


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        list(write_scenes(tmp_path / name, {"train": 3, "val": 2}, size=48, seed=seed))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")


def test_written_scenes_are_a_valid_data_set_with_the_asked_for_counts(tmp_path: Path) -> None:
    paths = list(write_scenes(tmp_path / "scenes", {"train": 6, "val": 3}, size=64))
    assert len(set(paths)) == 9
    dataset = open_dataset(tmp_path / "scenes")
    assert dataset.label_map == LABEL_MAP
    assert {split: check_samples(samples, LABEL_MAP).images for split, samples in dataset.splits.items()} == {
        "train": 6,
        "val": 3,
    }


def test_every_class_occurs_often_and_most_of_an_image_is_shapes_or_ground() -> None:
    masks = [draw_scene((1, i), 96).mask for i in range(40)]
    counts = sum(np.bincount(mask.reshape(-1), minlength=len(CLASS_NAMES)) for mask in masks)
    shares = counts / counts.sum()
    assert len(shares) == len(CLASS_NAMES)
    assert shares.min() > 0.02
    assert 0.4 < shares[0] < 0.85


def test_shapes_have_the_tight_boxes_of_what_is_to_be_seen() -> None:
    """Where no other shape of a class is in the scene, the mask tells its box."""
    told = covered = 0
    for i in range(60):
        scene = draw_scene((4, i), 96)
        assert {shape.info.id for shape in scene.shapes} == set(np.unique(scene.mask)) - {0}
        covered += len(scene.shapes) > 1
        classes = [shape.info for shape in scene.shapes]
        for shape in scene.shapes:
            if classes.count(shape.info) == 1:
                told += 1
                rows, columns = np.nonzero(scene.mask == shape.info.id)
                height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
                assert shape.box == Box(rows.min(), columns.min(), height, width)
    assert told > 40
    assert covered > 10


def test_some_scenes_are_not_square_and_no_side_is_longer_than_asked() -> None:
    shapes = {draw_scene((2, i), 96).mask.shape for i in range(30)}
    assert {max(shape) for shape in shapes} == {96}
    assert any(height < width for height, width in shapes)
    assert any(height > width for height, width in shapes)


def test_mean_colour_does_not_tell_the_class() -> None:
    """Between classes the mean colour varies far less than within one."""
    colours: dict[int, list[np.ndarray]] = {}
    for i in range(120):
        scene = draw_scene((3, i), 64)
        for class_id in np.unique(scene.mask):
            colours.setdefault(int(class_id), []).append(scene.image[scene.mask == class_id].mean(axis=0))
    centres = np.stack([np.mean(colours[i], axis=0) for i in range(len(CLASS_NAMES))])
    within = np.mean([np.std(colours[i], axis=0) for i in range(len(CLASS_NAMES))])
    assert centres.std(axis=0).max() < 0.5 * within


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError, match="already holds something"):
        list(write_scenes(tmp_path, {"train": 1}, size=48))
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(("counts", "size"), [({"train": 0}, 64), ({"train": 1}, 16)])
def test_sizes_and_counts_that_make_no_sense_are_refused(tmp_path: Path, counts: dict[str, int], size: int) -> None:
    with pytest.raises(UsageError, match="at least"):
        list(write_scenes(tmp_path / "scenes", counts, size=size))

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.errors import ModelFileError, UsageError
from fcnseg.types import LabelMap
from training.config import TrainConfig, as_plain, from_plain, write_config
from training.run import RunRecord, find_checkpoint, open_run, record_as_plain, record_from_plain
from training.run_folder import prepare_folder

unit = st.floats(0, 1)
channels = st.tuples(unit, unit, unit)
records = st.builds(
    RunRecord,
    config=st.builds(
        TrainConfig,
        data=st.text(),
        backbone=st.text(),
        variant=st.sampled_from(["fcn32s", "fcn16s", "fcn8s"]),
        weights=st.none() | st.text(),
        epochs=st.integers(1, 1000),
        lr=st.floats(1e-9, 1),
        seed=st.integers(0, 2**31),
    ),
    label_map=st.lists(st.text(min_size=1), min_size=2, max_size=5).map(
        lambda n: LabelMap.from_names(n, ignore_id=255)
    ),
    mean=channels,
    std=channels,
    data_fingerprint=st.text(),
    epoch=st.integers(0, 100),
    metrics=st.dictionaries(st.sampled_from(["mean_iou", "pixel_accuracy"]), unit),
)


@given(records)
def test_a_record_survives_the_way_through_plain_values(record: RunRecord) -> None:
    assert record_from_plain(record_as_plain(record)) == record


def test_a_configuration_with_a_normalisation_survives_yaml(tmp_path: Path) -> None:
    import yaml

    config = TrainConfig("data", "vgg16", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), weights="w.pth")
    write_config(tmp_path / "config.yaml", config)
    assert from_plain(yaml.safe_load((tmp_path / "config.yaml").read_text())) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"crop": (8, 8)},
        {"crop": (64, 99_999)},
        {"scale_jitter": (1.0, 1e9)},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"workers": -1},
        {"mean": [0] * 3},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        from_plain({**as_plain(TrainConfig("data", "vgg16")), **wrong})


def test_the_best_checkpoint_is_taken_before_the_last(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    assert find_checkpoint(tmp_path).name == "last.ckpt"
    (tmp_path / "best.ckpt").touch()
    assert find_checkpoint(tmp_path).name == "best.ckpt"
    assert find_checkpoint(tmp_path / "last.ckpt").name == "last.ckpt"


def test_no_checkpoint_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="fcnseg train"):
            find_checkpoint(path)


def test_files_that_are_no_checkpoint_of_ours_are_refused(tmp_path: Path) -> None:
    garbage, foreign, empty, tensor = (tmp_path / f"{n}.ckpt" for n in ("garbage", "foreign", "empty", "tensor"))
    garbage.write_bytes(b"garbage")
    empty.touch()
    torch.save({"state_dict": {}}, foreign)
    torch.save(torch.zeros(3), tensor)
    for path in (garbage, foreign, empty, tensor):
        with pytest.raises(ModelFileError, match="not a checkpoint of 'fcnseg train'"):
            open_run(path)


def test_a_folder_with_a_run_is_refused_and_cleared_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepare_folder(folder, overwrite=False)
    (folder / "best.ckpt").touch()
    (folder / "notes.txt").touch()
    with pytest.raises(UsageError, match="--overwrite"):
        prepare_folder(folder, overwrite=False)
    assert (folder / "best.ckpt").exists()
    prepare_folder(folder, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_file_in_the_place_of_the_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UsageError, match="is a file"):
        prepare_folder(tmp_path / "run", overwrite=True)


def test_a_run_folder_whose_name_is_no_utf8_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not named in UTF-8, as TensorBoard needs; name another$"):
        prepare_folder(tmp_path / "r\udcff", overwrite=False)
    assert list(tmp_path.iterdir()) == []

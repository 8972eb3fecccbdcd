"""What users of other toolkits complain about, done here from the command line as they would.

Each trouble either does not arise, or is refused with one line that says what is wrong and what helps.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from fcnseg.errors import DatasetError, FcnsegError, UsageError, WeightsError
from fcnseg.geometry import Geometry
from tests.image_folders import random_images
from training.commands.check import check
from training.commands.evaluate import evaluate
from training.commands.export import export
from training.commands.train import train
from training.optimisation import rate_factor
from training.run import open_run
from training.scenes import LABEL_MAP, write_scenes

BACKBONE = "squeezenet1_1"
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)
LR, EPOCHS = 0.01, 3

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    list(write_scenes(folder, {"train": 8, "val": 2}, size=48))
    return folder


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    """Scenes that a test may change."""
    return shutil.copytree(scenes, tmp_path / "data")


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch from random weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    succeed(train, *arguments(scenes, folder))
    return folder


@pytest.fixture(scope="module")
def model_file(run: Path) -> Path:
    succeed(export, run, "-o", run.parent / "model.onnx")
    return run.parent / "model.onnx"


def arguments(data: Path, run: Path, epochs: int = 1) -> list[str]:
    """Arguments for `fcnseg train` on small crops."""
    net = ["--backbone", BACKBONE, "--no-pretrained"]
    normalisation = ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]
    small = ["--crop", "48", "--batch-size", "4", "--epochs", str(epochs), "--device", "cpu"]
    return [str(data), *net, *normalisation, *small, "-o", str(run)]


def succeed(command: click.Command, *args: str | Path) -> str:
    """Run a command and return what it prints."""
    result = CliRunner().invoke(command, list(map(str, args)))
    if result.exception is not None:
        raise result.exception
    return result.output


def refusal(command: click.Command, *args: str | Path, error: type[FcnsegError] = DatasetError) -> str:
    """Run a command that must fail with such an error, and return its one line."""
    result = CliRunner().invoke(command, list(map(str, args)))
    assert type(result.exception) is error, (result.exception, result.output)
    message = str(result.exception)
    assert "\n" not in message
    return message


def masks_of(data: Path) -> list[Path]:
    return sorted((data / "masks").iterdir())


def read_mask(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def mode_of(path: Path) -> str:
    with Image.open(path) as picture:
        return picture.mode


def write_classes(data: Path, **content: object) -> None:
    path = data / "classes.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))


def checkpoint_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def test_255_for_the_object_in_binary_masks_is_not_silently_no_label(data: Path, tmp_path: Path) -> None:
    """Elsewhere 255 is left out of the loss, and the object's IoU stays 0 (mmsegmentation #1609)."""
    write_classes(data, names=["ground", "object"], palette_rgb=[[0, 0, 0], [255, 255, 255]], void=None)
    binary = {path: read_mask(path) > 0 for path in masks_of(data)}
    for path, inside in binary.items():
        Image.fromarray(255 * inside.astype(np.uint8)).save(path)
    message = refusal(train, *arguments(data, tmp_path / "run"))
    assert str(next(iter(binary))) in message
    assert "255 counts as no label; write 1 for 255" in message
    assert not (tmp_path / "run").exists()
    for path, inside in binary.items():
        Image.fromarray(inside.astype(np.uint8)).save(path)
    assert "0 errors" in succeed(check, data)


def test_masks_of_ids_of_palette_indices_and_of_colours_are_one(data: Path) -> None:
    """Elsewhere palette masks are read as grey or RGB, and the ids are lost (mmsegmentation #2486)."""
    colours = np.array([info.colour for info in LABEL_MAP.classes], np.uint8)
    answers = [succeed(check, data)]
    for path in masks_of(data):
        ids = read_mask(path)
        assert mode_of(path) == "P"
        Image.fromarray(np.ascontiguousarray(ids)).save(path)
        assert mode_of(path) == "L"
    answers.append(succeed(check, data))
    for path in masks_of(data):
        Image.fromarray(colours[read_mask(path)]).save(path)
    answers.append(succeed(check, data))
    assert answers[0] == answers[1] == answers[2]
    assert "0 errors" in answers[0]


def test_a_palette_that_was_made_grey_is_recognised(data: Path, tmp_path: Path) -> None:
    for path in masks_of(data):
        Image.open(path).convert("RGB").convert("L").save(path)
    message = refusal(train, *arguments(data, tmp_path / "run"))
    assert "these are its classes' colours made grey; save palette indices instead" in message


def test_a_stray_255_is_told_before_the_first_step(data: Path, run: Path, tmp_path: Path) -> None:
    """Elsewhere it becomes an index out of range inside a CUDA kernel."""
    write_classes(data, void=5)
    path = data / "masks" / "val_0001.png"
    ids = read_mask(path).copy()
    ids[0, 0] = 255
    Image.fromarray(ids).save(path)
    told = f"mask {path} has ids 255 on 1 pixels where the classes are 0 to 4 and 5 for no label"
    assert told in refusal(train, *arguments(data, tmp_path / "run"))
    assert told in refusal(evaluate, run, data)
    assert not (tmp_path / "run").exists()


def test_a_test_split_without_masks_is_in_nobodys_way_who_does_not_measure_on_it(
    data: Path, model_file: Path, tmp_path: Path
) -> None:
    (data / "test.txt").write_text("some\nothers\n")
    for name in ("some", "others"):
        shutil.copy(next((data / "images").iterdir()), data / "images" / f"{name}.png")
    lone = "name 'some' in test.txt has no mask of that name in"
    said = succeed(train, *arguments(data, tmp_path / "run"))
    assert f"warning: {lone}" in said
    assert "(1 more: 'fcnseg check" in said
    succeed(evaluate, model_file, data)
    assert lone in refusal(evaluate, model_file, data, "--split", "test")
    examined = CliRunner().invoke(check, [str(data)])
    assert examined.exit_code == 1
    assert lone in examined.stdout
    assert "name 'others' in test.txt has no mask of that name in" in examined.stdout


def test_weights_of_another_number_of_classes_are_told_with_both_numbers(scenes: Path, tmp_path: Path) -> None:
    """Elsewhere: size mismatch for classifier.4.weight, over many lines (vision #1891, DeepLabV3Plus #105)."""
    (tmp_path / "net.py").write_text(
        "from torchvision.models import squeezenet1_1\n\n\ndef small():\n    return squeezenet1_1(num_classes=3)\n"
    )
    torch.save(own_weights(7), tmp_path / "seven.pth")
    others: list[str | Path] = [
        "--weights",
        tmp_path / "seven.pth",
        "--backbone",
        f"{tmp_path / 'net.py'}:small",
        "--pretrained",
    ]
    message = refusal(train, *arguments(scenes, tmp_path / "run"), *others, error=WeightsError)
    assert "seven.pth score 7 classes where SqueezeNet scores 3" in message


def test_a_classifier_of_any_number_of_classes_becomes_a_net_of_those_of_the_data(scenes: Path, tmp_path: Path) -> None:
    torch.save(own_weights(7), tmp_path / "seven.pth")
    options: list[str | Path] = ["--weights", tmp_path / "seven.pth", "--pretrained"]
    succeed(train, *arguments(scenes, tmp_path / "run"), *options)
    assert "mean IoU" in succeed(evaluate, tmp_path / "run", scenes)


def own_weights(classes: int) -> dict[str, torch.Tensor]:
    from torchvision.models import squeezenet1_1

    weights: dict[str, torch.Tensor] = squeezenet1_1(num_classes=classes).state_dict()
    return weights


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["background", "disc", "triangle", "ring", "cross", "star"], "id 5 is no class in the model (5 classes)"),
        (["background", "triangle", "disc", "ring", "cross"], "id 1 is 'disc' in the model (5 classes) but 'triangle'"),
    ],
    ids=["one more", "another order"],
)
def test_a_model_is_not_measured_on_data_of_other_classes(
    data: Path, run: Path, model_file: Path, names: list[str], told: str
) -> None:
    write_classes(data, names=names, palette_rgb=None)
    for model in (run, model_file):
        assert told in refusal(evaluate, model, data)


def test_a_run_does_not_start_from_one_on_other_classes(data: Path, run: Path, tmp_path: Path) -> None:
    write_classes(data, names=["background", "disc", "triangle", "ring", "cross", "star"], palette_rgb=None)
    message = refusal(train, *arguments(data, tmp_path / "run"), "--start", run, error=UsageError)
    assert message == f"the run in {run} was trained for other classes; start from a run on the same classes"
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_on_other_classes(data: Path, tmp_path: Path) -> None:
    options = arguments(data, tmp_path / "run")
    succeed(train, *options)
    for names in (
        ["background", "disc", "triangle", "ring", "cross", "star"],
        ["background", "triangle", "disc", "ring", "cross"],
    ):
        write_classes(data, names=names, palette_rgb=None)
        assert "classes" in refusal(train, *options, "--resume", error=UsageError)


def test_the_exported_file_takes_raw_pixels_and_answers_as_torch_does(run: Path, model_file: Path) -> None:
    """Elsewhere mean and std stay behind in a configuration file (mmsegmentation #439, mmdeploy #600)."""
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    assert [(given.name, given.type) for given in session.get_inputs()] == [("image", "tensor(uint8)")]
    model = open_run(run).model
    images = random_images(1, 61, 83)
    class_map, heatmap = session.run(["class_map", "heatmap"], {"image": images})
    with torch.no_grad():
        expected_map, expected, _ = (answer.numpy() for answer in model(torch.from_numpy(images)))
        by_hand = model.net(normalised(images[0], model.geometry)).numpy()
    np.testing.assert_allclose(heatmap, expected, atol=1e-5 * np.ptp(expected))
    np.testing.assert_allclose(heatmap, by_hand, atol=1e-5 * np.ptp(by_hand))
    assert (class_map != expected_map).mean() < 1e-3


def normalised(image: NDArray[np.uint8], geometry: Geometry) -> torch.Tensor:
    """An image as its net takes it: less the mean, by the deviation, and continued at its edges."""
    floats = (image / 255 - np.array(MEAN)) / np.array(STD)
    pads = []
    for axis, size in zip((geometry.y, geometry.x), image.shape, strict=False):
        multiples = -(-(size + axis.lead + axis.trail) // axis.alignment)
        padded = max(axis.minimum, multiples * axis.alignment)
        pads.append((axis.lead, padded - axis.lead - size))
    continued = np.pad(floats, [*pads, (0, 0)], mode="edge")
    return torch.from_numpy(continued.transpose(2, 0, 1)[None].astype(np.float32))


def test_the_exported_file_scores_what_the_run_scored(scenes: Path, run: Path, model_file: Path) -> None:
    figures = []
    for i, model in enumerate((run, model_file)):
        path = model_file.parent / f"{i}.json"
        succeed(evaluate, model, scenes, "--json", path)
        figures.append(json.loads(path.read_text()))
    validated = checkpoint_of(run / "best.ckpt")["fcnseg"]["metrics"]
    for name, value in validated.items():
        assert figures[0][name] == value
        assert figures[1][name] == pytest.approx(value, abs=1e-3)


def test_the_exported_file_takes_any_size_and_number_of_images(run: Path, model_file: Path) -> None:
    """Elsewhere the traced size is frozen in, or other sizes give wrong answers (mmsegmentation #1840, #1310)."""
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    model = open_run(run).model
    for count, height, width in ((1, 1, 1), (3, 33, 47), (2, 97, 131), (1, 150, 61), (5, 64, 64)):
        images = random_images(count, height, width)
        class_map, heatmap = session.run(["class_map", "heatmap"], {"image": images})
        assert class_map.shape == (count, height, width)
        with torch.no_grad():
            expected = model.heatmap(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(heatmap, expected, atol=1e-5 * np.ptp(expected))


def test_a_killed_run_goes_on_with_its_best_score_and_its_learning_rate(data: Path, tmp_path: Path) -> None:
    """Elsewhere the best score is forgotten, or the schedule begins anew (mmsegmentation #2428, lightly-train #428)."""
    run = tmp_path / "run"
    options = [*arguments(data, run, EPOCHS), "--lr", str(LR), "--resume"]
    train_until_killed(options)
    done = checkpoint_of(run / "last.ckpt")["fcnseg"]["epoch"]
    assert rate_of(run / "last.ckpt") == pytest.approx(expected_rate(done))
    assert done < EPOCHS
    succeed(train, *options)
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    best = max(rows, key=lambda row: float(row["mean_iou"]))  # the first of equals
    kept = checkpoint_of(run / "best.ckpt")["fcnseg"]
    assert (kept["epoch"], kept["metrics"]["mean_iou"]) == (int(best["epoch"]), float(best["mean_iou"]))
    logged = logged_rates(run)
    for epoch in range(done + 1, EPOCHS + 1):
        assert logged[epoch] == pytest.approx(expected_rate(epoch), abs=1e-9)


def train_until_killed(options: list[str]) -> None:
    """Train in a process of its own, which is killed as soon as it tells of an epoch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fcnseg", "train", *options]
    seen = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            seen += line
            if line.startswith("epoch"):
                process.kill()
                return
    raise AssertionError(seen)


def expected_rate(epochs: int) -> float:
    """The rate of the step behind some epochs of two steps each."""
    return LR * rate_factor(2 * epochs, 2 * EPOCHS, 0.1)


def rate_of(checkpoint: Path) -> float:
    """The rate of the next step of the new layers."""
    (optimiser,) = checkpoint_of(checkpoint)["optimizer_states"]
    return max(float(group["lr"]) for group in optimiser["param_groups"])


def logged_rates(run: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("lr")}


def test_a_stray_id_in_what_an_export_is_measured_on_is_told_before_it(data: Path, run: Path, tmp_path: Path) -> None:
    path, output = data / "masks" / "val_0001.png", tmp_path / "out" / "m.onnx"
    ids = read_mask(path).copy()
    ids[0, 0] = 77
    Image.fromarray(ids).save(path)
    message = refusal(export, run, "-o", output, "--precision", "fp16", "--data", data)
    assert f"mask {path} has ids 77 on 1 pixels where the classes are 0 to 4" in message
    assert not output.parent.exists()


def test_an_export_is_not_measured_on_masks_without_a_label(data: Path, run: Path, tmp_path: Path) -> None:
    for path in (data / "masks").glob("val_*.png"):
        Image.fromarray(np.full_like(read_mask(path), 255)).save(path)
    output = tmp_path / "out" / "m.onnx"
    message = refusal(export, run, "-o", output, "--precision", "fp16", "--data", data)
    assert message.startswith("no pixel of the val masks has a class: all have id 255, which counts as no label;")
    assert not output.parent.exists()


def test_a_model_card_takes_the_place_of_no_other_text_and_a_second_export_that_of_the_first(
    run: Path, model_file: Path, tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    message = refusal(export, run, "-o", readme.with_suffix(".onnx"), error=UsageError)
    assert message == f"{readme} exists, and the model card would overwrite it; name another output"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert readme.read_text() == "mine"
    for suffix in (".onnx", ".md"):
        shutil.copy(model_file.with_suffix(suffix), tmp_path)
    (tmp_path / "model.md").write_text("the first card")
    succeed(export, run, "-o", tmp_path / "model.onnx")
    assert (tmp_path / "model.md").read_text().startswith("# model\n")

"""The whole path, by the commands that a user types: scenes, train, export, evaluate, serve, request, segment."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fcnseg import images, masks
from fcnseg.client import Client
from fcnseg.masks import Encoding
from fcnseg.segmenter import load

pytest.importorskip("torch", reason="the whole path needs the train extra")


def fcnseg(*args: object) -> str:
    command = [sys.executable, "-m", "fcnseg", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole_path")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    fcnseg("scenes", folder / "scenes", "--train", 16, "--val", 6, "--size", 96)
    return folder / "scenes"


@pytest.fixture(scope="module")
def run(folder: Path, data: Path) -> Path:
    fcnseg("train", data, "--backbone", "timm/tf_efficientnet_lite0", "--epochs", 1, "-o", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def model(folder: Path, run: Path) -> Path:
    assert "parity with PyTorch" in fcnseg("export", run, "-o", folder / "scenes.onnx")
    return folder / "scenes.onnx"


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    command = [sys.executable, "-u", "-m", "fcnseg", "serve", str(model), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield next(line.split()[-1] for line in lines if line.startswith("listening on"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_checkpoint_and_model_file_score_the_same(folder: Path, data: Path, run: Path, model: Path) -> None:
    reports = []
    for name, what in (("torch", run), ("onnx", model)):
        fcnseg("evaluate", what, data, "--split", "val", "--json", folder / f"{name}.json")
        reports.append(json.loads((folder / f"{name}.json").read_text()))
    for key in ("mean_iou", "pixel_accuracy"):
        assert reports[0][key] == pytest.approx(reports[1][key], abs=1e-4)
    assert reports[0]["per_class_iou"].keys() == reports[1]["per_class_iou"].keys()


def test_served_request_and_folder_command_give_the_same_bytes(
    folder: Path, data: Path, model: Path, server: str
) -> None:
    fcnseg("segment", model, data / "images", folder / "masks", "--device", "cpu")
    for name in (data / "val.txt").read_text().split()[:3]:
        photo = next((data / "images").glob(f"{Path(name).stem}.*"))
        fcnseg("request", server, photo, "-o", folder / "served.png")
        assert (folder / "served.png").read_bytes() == (folder / "masks" / f"{photo.stem}.png").read_bytes()


def test_every_encoding_carries_the_offline_mask(data: Path, model: Path, server: str, folder: Path) -> None:
    photo = min((data / "images").iterdir())
    with Client(server) as client:
        answers = [client.segment(photo, encoding=encoding) for encoding in Encoding]
        raw = client.segment(images.read(photo))
    for answer in [*answers, raw]:
        np.testing.assert_array_equal(answer.class_map, answers[0].class_map)
    fcnseg("segment", model, photo, folder / "one", "--device", "cpu")
    np.testing.assert_array_equal(masks.read_ids(folder / "one" / f"{photo.stem}.png"), raw.class_map)


def test_8_bit_integers_are_calibrated_measured_and_served(folder: Path, data: Path, run: Path) -> None:
    told = fcnseg("export", run, "-o", folder / "int8.onnx", "--precision", "int8", "--calibration-images", 4)
    assert "Computed in int8: on 6 validation images mean IoU" in told
    card = (folder / "int8.md").read_text()
    assert "Computed in int8" in card
    assert "fcnseg export run -o int8.onnx --precision int8 --calibration-images 4\n" in card
    photo = min((data / "images").iterdir())
    command = [
        sys.executable,
        "-u",
        "-m",
        "fcnseg",
        "serve",
        str(folder / "int8.onnx"),
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        with Client(next(line.split()[-1] for line in lines if line.startswith("listening on"))) as client:
            answer = client.segment(photo)
            assert client.get_model("int8").execution.precision == "int8"
        process.terminate()
    expected = load(folder / "int8.onnx", "cpu").segment(photo)
    np.testing.assert_array_equal(answer.class_map, expected.class_map)


def test_a_run_whose_data_are_gone_is_exported_to_fewer_bits_with_other_data_alone(folder: Path, run: Path) -> None:
    command = [sys.executable, "-m", "fcnseg", "export", str(run), "-o", str(folder / "m.onnx"), "--precision", "fp16"]
    done = subprocess.run([*command, "--data", str(folder / "gone")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "gone does not exist; name a folder" in done.stderr.splitlines()[-1]
    assert not (folder / "m.onnx").exists()

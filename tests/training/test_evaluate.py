import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fcnseg.errors import DatasetError, ModelFileError, UsageError
from fcnseg.files import write_bytes
from fcnseg.masks import Encoding, encode
from fcnseg.types import LabelMap
from training.commands.evaluate import evaluate

LABELS = LabelMap.from_names(["red", "green", "blue"], ignore_id=255)
TRUTH = np.kron(np.array([[0, 1, 0], [1, 0, 0]], np.uint8), np.ones((4, 4), np.uint8))


def write_dataset(root: Path, mask: np.ndarray, names: list[str]) -> Path:
    """One image that shows TRUTH in red, green and blue, labelled as `mask`."""
    image = 255 * np.eye(3, dtype=np.uint8)[TRUTH]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    cv2.imwrite(str(root / "images" / "a.png"), image[..., ::-1])
    write_bytes(root / "masks" / "a.png", encode(mask, Encoding.PNG, LABELS))
    (root / "val.txt").write_text("a.png\n")
    (root / "classes.json").write_text(json.dumps({"names": names}))
    return root


def run(*args: object) -> Result:
    return CliRunner().invoke(evaluate, [str(arg) for arg in args])


def test_a_model_that_is_right_everywhere_scores_one(tiny_model: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", TRUTH, ["red", "green", "blue"])
    result = run(tiny_model, data, "--json", tmp_path / "out.json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "mean_iou": 1.0,
        "pixel_accuracy": 1.0,
        "per_class_iou": {"red": 1.0, "green": 1.0, "blue": None},
        "model": str(tiny_model),
        "data": str(data),
        "split": "val",
        "images": 1,
    }
    assert "mean IoU 1.0000" in result.stdout


def test_errors_are_counted_and_ignored_pixels_are_not(tiny_model: Path, tmp_path: Path) -> None:
    mask = TRUTH.copy()
    mask[:4, :4] = 2  # red shown where the mask says blue: 16 pixels
    mask[4:, 8:] = 255  # 16 of the red pixels have no label
    data = write_dataset(tmp_path / "data", mask, ["red", "green", "blue"])
    run(tiny_model, data, "--json", tmp_path / "out.json", "--device", "cpu")
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["pixel_accuracy"] == 64 / 80
    assert figures["per_class_iou"] == {"red": 32 / 48, "green": 1.0, "blue": 0.0}
    assert figures["mean_iou"] == pytest.approx((32 / 48 + 1) / 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["red", "blue", "green"], "id 1 is 'green' in the model .* but 'blue' in the data"),
        (["red", "green"], "id 2 is 'blue' in the model .* but no class in the data"),
    ],
)
def test_other_classes_than_the_models_are_refused(
    tiny_model: Path, tmp_path: Path, names: list[str], message: str
) -> None:
    data = write_dataset(tmp_path / "data", TRUTH, names)
    result = run(tiny_model, data, "--device", "cpu")
    assert isinstance(result.exception, DatasetError)
    assert result.exception.exit_code == 2
    with pytest.raises(DatasetError, match=message):
        raise result.exception


def test_faulty_masks_are_refused_before_anything_is_measured(tiny_model: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", TRUTH + 5, ["red", "green", "blue"])
    result = run(tiny_model, data, "--json", tmp_path / "out.json", "--device", "cpu")
    assert isinstance(result.exception, DatasetError)
    assert not (tmp_path / "out.json").exists()


def test_what_is_neither_model_file_nor_run_is_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", TRUTH, ["red", "green", "blue"])
    assert isinstance(run(tmp_path / "nowhere", data).exception, UsageError)
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    assert isinstance(run(tmp_path / "model.onnx", data, "--device", "cpu").exception, ModelFileError)

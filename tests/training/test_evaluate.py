import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

import fcnseg
from fcnseg.commands.segment import segment
from fcnseg.errors import DatasetError, ModelFileError, UsageError
from fcnseg.files import write_bytes
from fcnseg.masks import Encoding, encode, read_ids
from fcnseg.resample import resample_to_pixels
from fcnseg.types import LabelMap
from tests.tiny_model import write_tiny_model
from training.commands.evaluate import evaluate
from training.evaluation import AveragedPredictor, ServedNet, extremes
from training.metrics import Scores

NAMES = ["red", "green", "blue"]
LABELS = LabelMap.from_names(NAMES, ignore_id=255)
TRUTH = np.kron(np.array([[0, 1, 0], [1, 0, 0]], np.uint8), np.ones((4, 4), np.uint8))


def write_dataset(root: Path, mask: np.ndarray, names: list[str]) -> Path:
    """One image that shows TRUTH in red, green and blue, labelled as `mask`."""
    return write_images(root, [(255 * np.eye(3, dtype=np.uint8)[TRUTH], mask)], names)


def write_images(root: Path, pairs: list[tuple[np.ndarray, np.ndarray]], names: list[str]) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i, (image, mask) in enumerate(pairs):
        cv2.imwrite(str(root / "images" / f"{i}.png"), image[..., ::-1])
        write_bytes(root / "masks" / f"{i}.png", encode(mask, Encoding.PNG, LABELS))
    (root / "val.txt").write_text("".join(f"{i}.png\n" for i in range(len(pairs))))
    (root / "classes.json").write_text(json.dumps({"names": names}))
    return root


def write_noise(root: Path, count: int = 3) -> Path:
    """Images of noise in different sizes, with random masks of which a fifth has no label."""
    random = np.random.default_rng(0)
    pairs = []
    for i in range(count):
        shape = (9 + 5 * i, 22 - 3 * i)
        mask = random.choice(np.array([0, 1, 2, 255], np.uint8), shape, p=[0.5, 0.2, 0.1, 0.2])
        pairs.append((random.integers(0, 256, (*shape, 3)).astype(np.uint8), mask))
    return write_images(root, pairs, NAMES)


def run(*args: object) -> Result:
    return CliRunner().invoke(evaluate, [*(str(arg) for arg in args), "--device", "cpu"])


def figures(*args: object, folder: Path) -> dict:
    result = run(*args, "--json", folder / "out.json")
    assert result.exit_code == 0, result.output
    return json.loads((folder / "out.json").read_text())


def test_a_model_that_is_right_everywhere_scores_one(tiny_model: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", TRUTH, NAMES)
    result = run(tiny_model, data, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert 0 < found.pop("calibration_error") < 0.1  # the model is less sure at the borders of its cells
    assert found == {
        "mean_iou": 1.0,
        "pixel_accuracy": 1.0,
        "mean_accuracy": 1.0,
        "frequency_weighted_iou": 1.0,
        "boundary_iou": 1.0,
        "per_class_iou": {"red": 1.0, "green": 1.0, "blue": None},
        "images": 1,
        "classes": NAMES,
        "confusion_matrix": [[64, 0, 0], [0, 32, 0], [0, 0, 0]],
        "model": str(tiny_model),
        "model_sha256": hashlib.sha256(tiny_model.read_bytes()).hexdigest(),
        "label_map_hash": fcnseg.load(tiny_model, "cpu").info.label_map.hash,
        "data": str(data),
        "split": "val",
        "scales": [],
        "flip": False,
    }
    assert "mean IoU 1.0000" in result.stdout


def test_a_class_named_like_markup_is_printed_by_that_name(tmp_path: Path) -> None:
    names = ("red", "[bold]green[/bold]", "blue")
    model = write_tiny_model(tmp_path / "model.onnx", class_names=names)
    assert "[bold]green[/bold]" in run(model, write_dataset(tmp_path / "data", TRUTH, list(names))).stdout


def test_errors_are_counted_and_ignored_pixels_are_not(tiny_model: Path, tmp_path: Path) -> None:
    mask = TRUTH.copy()
    mask[:4, :4] = 2  # red shown where the mask says blue: 16 pixels
    mask[4:, 8:] = 255  # 16 of the red pixels have no label
    found = figures(tiny_model, write_dataset(tmp_path / "data", mask, NAMES), folder=tmp_path)
    assert found["pixel_accuracy"] == 64 / 80
    assert found["per_class_iou"] == {"red": 32 / 48, "green": 1.0, "blue": 0.0}
    assert found["mean_iou"] == pytest.approx((32 / 48 + 1) / 3)
    assert found["mean_accuracy"] == pytest.approx(2 / 3)
    assert found["frequency_weighted_iou"] == pytest.approx((32 * 32 / 48 + 32) / 80)
    assert found["confusion_matrix"] == [[32, 0, 0], [0, 32, 0], [16, 0, 0]]


def test_the_figures_are_those_of_the_masks_that_segment_writes(tiny_model: Path, tmp_path: Path) -> None:
    data = write_noise(tmp_path / "data")
    found = figures(tiny_model, data, folder=tmp_path)
    arguments = [str(tiny_model), str(data / "images"), str(tmp_path / "masks"), "--device", "cpu"]
    assert CliRunner().invoke(segment, arguments).exit_code == 0
    matrix = np.zeros((3, 3), int)
    for path in (data / "masks").iterdir():
        truth, predicted = read_ids(path), read_ids(tmp_path / "masks" / path.name)
        for t, p in zip(truth.reshape(-1), predicted.reshape(-1), strict=True):
            if t != 255:
                matrix[t, p] += 1
    assert found["confusion_matrix"] == matrix.tolist()
    assert found["pixel_accuracy"] == np.trace(matrix) / matrix.sum()
    unions = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    assert found["mean_iou"] == pytest.approx(np.mean(np.diag(matrix) / unions))
    assert found["images"] == 3


def test_the_calibration_is_that_of_the_served_confidence(tiny_model: Path, tmp_path: Path) -> None:
    data = write_noise(tmp_path / "data")
    segmenter = fcnseg.load(tiny_model, "cpu")
    confidences, right = [], []
    for path in (data / "masks").iterdir():
        truth, answer = read_ids(path), segmenter.segment(data / "images" / path.name, confidence=True)
        assert answer.confidence is not None
        confidences.append(answer.confidence[truth != 255] / 255)
        right.append((answer.class_map == truth)[truth != 255])
    confidence, correct = np.concatenate(confidences), np.concatenate(right)
    error = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (confidence > low + 1e-9) & (confidence <= high + 1e-9)
        if inside.any():
            error += abs(correct[inside].mean() - confidence[inside].mean()) * inside.mean()
    assert figures(tiny_model, data, folder=tmp_path)["calibration_error"] == pytest.approx(error)


def test_one_view_at_the_images_own_size_is_what_is_served(tiny_model: Path) -> None:
    net = ServedNet(tiny_model, "cpu")
    image = np.random.default_rng(0).integers(0, 256, (19, 26, 3)).astype(np.uint8)
    averaged, served = AveragedPredictor(net, [1.0], flip=False).predict(image), net.predict(image)
    np.testing.assert_array_equal(averaged.class_map, served.class_map)
    assert averaged.confidence.dtype == np.uint8
    assert np.abs(averaged.confidence.astype(int) - served.confidence).max() <= 1


def test_views_are_averaged_as_probabilities_where_their_pixels_lie(tiny_model: Path) -> None:
    net = ServedNet(tiny_model, "cpu")
    random = np.random.default_rng(0)
    image = np.kron(random.integers(0, 256, (4, 5, 3)), np.ones((4, 4, 1))).astype(np.uint8)  # whole cells

    def probabilities(view: np.ndarray) -> np.ndarray:
        heatmap = net.heatmap(np.ascontiguousarray(view))
        scores = np.stack([resample_to_pixels(s, net.geometry, 16, 20) for s in heatmap])
        powers = np.exp(scores.astype(float))
        return powers / powers.sum(axis=0)

    mean = (probabilities(image) + probabilities(image[:, ::-1])[..., ::-1]) / 2
    found = AveragedPredictor(net, [1.0], flip=True).predict(image)
    np.testing.assert_array_equal(found.class_map, mean.argmax(axis=0))
    assert np.abs(found.confidence - mean.max(axis=0) * 255).max() <= 0.51


@pytest.mark.parametrize("scales", [[0.5], [1.5], [2.0], [0.5, 1.0, 1.5]])
@pytest.mark.parametrize("flip", [False, True])
def test_every_scale_and_side_finds_the_classes_where_they_are(
    tiny_model: Path, *, scales: list[float], flip: bool
) -> None:
    truth = np.kron(np.array([[0, 1, 2], [2, 2, 1]], np.uint8), np.ones((24, 16), np.uint8))
    image = 255 * np.eye(3, dtype=np.uint8)[truth]
    found = AveragedPredictor(ServedNet(tiny_model, "cpu"), scales, flip=flip).predict(image)
    np.testing.assert_array_equal(found.class_map, truth)


def test_an_image_of_one_pixel_can_be_scaled_down(tiny_model: Path) -> None:
    image = np.array([[[0, 255, 0]]], np.uint8)
    found = AveragedPredictor(ServedNet(tiny_model, "cpu"), [0.25], flip=True).predict(image)
    assert found.class_map.tolist() == [[1]]


@pytest.mark.parametrize(
    ("options", "scales", "flip"),
    [
        (["--scales", "0.75", "1.0", "1.25", "--flip"], [0.75, 1.0, 1.25], True),
        (["--scales", "0.5,2"], [0.5, 2.0], False),
        (["--flip"], [1.0], True),
    ],
)
def test_averaging_is_told_in_the_figures(
    tiny_model: Path, tmp_path: Path, *, options: list[str], scales: list[float], flip: bool
) -> None:
    data = write_dataset(tmp_path / "data", TRUTH, NAMES)
    found = figures(tiny_model, data, *options, folder=tmp_path)
    assert (found["scales"], found["flip"]) == (scales, flip)


def test_with_averaging_the_calibration_is_that_of_the_averaged_probability(tiny_model: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", TRUTH, NAMES)
    image = 255 * np.eye(3, dtype=np.uint8)[TRUTH]
    answer = AveragedPredictor(ServedNet(tiny_model, "cpu"), [0.5, 2.0], flip=True).predict(image)
    np.testing.assert_array_equal(answer.class_map, TRUTH)  # hence each bin's gap is how much its confidence lacks
    expected = 1 - answer.confidence.mean() / 255
    found = figures(tiny_model, data, "--scales", "0.5", "2", "--flip", folder=tmp_path)
    assert found["calibration_error"] == pytest.approx(expected)
    assert figures(tiny_model, data, folder=tmp_path)["calibration_error"] != pytest.approx(expected)


@pytest.mark.parametrize("scales", ["0", "-1", "5", "nan", "inf", "big", "0.5,,1"])
def test_scales_that_cannot_be_are_refused(tiny_model: Path, tmp_path: Path, scales: str) -> None:
    result = run(tiny_model, tmp_path, "--scales", scales)
    assert result.exit_code == 2
    assert "is not a list of numbers above 0 and up to 4" in result.stderr


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["red", "blue", "green"], "id 1 is 'green' in the model .* but 'blue' in the data"),
        (["red", "green"], "id 2 is 'blue' in the model .* but no class in the data"),
        ([*NAMES, "grey"], "id 3 is no class in the model .* but 'grey' in the data"),
    ],
)
def test_other_classes_than_the_models_are_refused(
    tiny_model: Path, tmp_path: Path, names: list[str], message: str
) -> None:
    data = write_dataset(tmp_path / "data", TRUTH, names)
    result = run(tiny_model, data)
    assert isinstance(result.exception, DatasetError)
    assert result.exception.exit_code == 2
    with pytest.raises(DatasetError, match=message):
        raise result.exception


def test_faulty_masks_are_refused_before_anything_is_measured(tiny_model: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", TRUTH + 5, NAMES)
    result = run(tiny_model, data, "--json", tmp_path / "out.json")
    assert isinstance(result.exception, DatasetError)
    assert not (tmp_path / "out.json").exists()


def test_a_split_without_a_label_is_refused_instead_of_measured_as_nothing(tiny_model: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", np.full_like(TRUTH, 255), NAMES)
    error = run(tiny_model, data, "--json", tmp_path / "out.json").exception
    assert isinstance(error, DatasetError)
    assert str(error).startswith("no pixel of the val masks has a class: all have id 255, which counts as no label;")
    assert not (tmp_path / "out.json").exists()


def test_nothing_is_written_when_the_model_fails_on_the_way(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model.onnx", fails_on_magenta=True)
    magenta = np.full((*TRUTH.shape, 3), (255, 0, 255), np.uint8)
    data = write_images(tmp_path / "data", [(magenta, TRUTH)], NAMES)
    result = run(model, data, "--json", tmp_path / "out.json", "--report", tmp_path / "out.html")
    assert result.exit_code != 0
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "data"}


def test_outputs_that_cannot_be_written_are_refused_before_any_work(tiny_model: Path, tmp_path: Path) -> None:
    for options in (["--json", tmp_path], ["--report", tmp_path]):
        assert isinstance(run(tiny_model, tmp_path / "nowhere", *options).exception, UsageError)


def test_reports_take_no_place_of_images_weights_or_what_tells_of_them(tiny_model: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", TRUTH, NAMES)
    image, classes = next(data.rglob("*.png")), data / "classes.json"
    assert classes.is_file()
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    kept = tmp_path / "run" / "environment.json"
    kept.parent.mkdir()
    kept.touch()
    error = run(kept.parent, data, "--json", kept).exception
    assert str(error) == f"output {kept} would replace an input; name another output"
    for option, place, told in (
        ("--json", image, "is to be a report; end its name in .json"),
        ("--report", image, "is to be a report; end its name in .html"),
        ("--json", tmp_path / "best.ckpt", "is to be a report; end its name in .json"),
        ("--json", classes, f"may be a part of {data}; name another place, or remove it first"),
    ):
        error = run(tiny_model, data, option, place).exception
        assert isinstance(error, UsageError)
        assert str(error) == f"output {place} {told}"
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_what_is_neither_model_file_nor_run_is_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", TRUTH, NAMES)
    assert isinstance(run(tmp_path / "nowhere", data).exception, UsageError)
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    assert isinstance(run(tmp_path / "model.onnx", data).exception, ModelFileError)


def test_a_model_file_whose_name_ends_in_capitals_is_one_as_for_export(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "M.ONNX").write_bytes(tiny_model.read_bytes())
    result = run(tmp_path / "M.ONNX", write_dataset(tmp_path / "data", TRUTH, NAMES))
    assert "mean IoU 1.0000" in result.stdout


def test_best_and_worst_images_are_chosen_by_their_own_mean_iou() -> None:
    images = [Scores(iou, iou, iou, iou, (iou,)) for iou in (0.5, 0.9, 0.1, 0.7, 0.3)]
    unlabelled = Scores(0.0, 0.0, 0.0, 0.0, (None,))
    assert extremes([*images, unlabelled], 2) == ([1, 3], [2, 4])
    assert extremes(images, 9) == ([1, 3, 0], [2, 4])
    assert extremes(images[:1], 4) == ([0], [])
    assert extremes([unlabelled], 4) == ([], [])

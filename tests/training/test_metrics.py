import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from training.metrics import FullMeter, Measures, Meter, Scores, expected_calibration_error, score

CASES = given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 6),
    used=st.integers(1, 6),
    ignore_id=st.sampled_from([None, 255, 6]),
)


def random_maps(
    seed: int, classes: int, used: int, ignore_id: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[slice, slice]]]:
    """Three images' predictions, masks and confidences, and the windows that make them differ in size."""
    random = np.random.default_rng(seed)
    shape = (3, random.integers(1, 9), random.integers(1, 9))
    predicted, truth = (
        np.repeat(random.integers(0, min(used, classes), shape), 2, axis=2).astype(np.uint8) for _ in range(2)
    )
    truth = np.where(random.random(truth.shape) < 0.6, predicted, truth)
    if ignore_id is not None:
        truth[random.random(truth.shape) < 0.3] = ignore_id
    confidence = random.integers(0, 256, truth.shape).astype(np.uint8)
    windows = [(slice(random.integers(1, shape[1] + 1)), slice(None)) for _ in range(3)]
    return predicted, truth, confidence, windows


def matrix_by_hand(predicted: np.ndarray, truth: np.ndarray, classes: int, ignore_id: int | None) -> np.ndarray:
    """One confusion matrix, filled pixel by pixel."""
    matrix = np.zeros((classes, classes), int)
    for p, t in zip(predicted.reshape(-1), truth.reshape(-1), strict=True):
        if t != ignore_id:
            matrix[t, p] += 1
    return matrix


def score_by_hand(matrix: np.ndarray) -> Scores:
    ious: list[float | None] = []
    accuracies, weighted = [], 0.0
    for i in range(len(matrix)):
        union = matrix[i].sum() + matrix[:, i].sum() - matrix[i, i]
        ious.append(matrix[i, i] / union if union else None)
        if matrix[i].sum():
            accuracies.append(matrix[i, i] / matrix[i].sum())
            weighted += matrix[i].sum() / matrix.sum() * matrix[i, i] / union
    present = [iou for iou in ious if iou is not None]
    return Scores(
        mean_iou=np.mean(present) if present else 0.0,
        pixel_accuracy=np.trace(matrix) / matrix.sum() if matrix.sum() else 0.0,
        mean_accuracy=np.mean(accuracies) if accuracies else 0.0,
        frequency_weighted_iou=weighted,
        per_class_iou=tuple(ious),
    )


def band_by_hand(region: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a region no farther (in the larger of rows and columns) than `width` from what is not of it."""
    around = np.pad(region, 1)
    outside = np.argwhere(~around) - 1
    return np.array(
        [
            [
                region[y, x] and bool((np.abs(outside - [y, x]).max(axis=1) <= width).any())
                for x in range(region.shape[1])
            ]
            for y in range(region.shape[0])
        ]
    )


def boundary_iou_by_hand(
    pairs: list[tuple[np.ndarray, np.ndarray]], classes: int, ignore_id: int | None, ratio: float
) -> float:
    common, either = np.zeros(classes), np.zeros(classes)
    for predicted, truth in pairs:
        width = max(1, round(ratio * np.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
        labelled = np.ones(truth.shape, bool) if ignore_id is None else truth != ignore_id
        for k in range(classes):
            bands = [band_by_hand((ids == k) & labelled, width) for ids in (predicted, truth)]
            common[k] += (bands[0] & bands[1]).sum()
            either[k] += (bands[0] | bands[1]).sum()
    ious = [c / e for c, e in zip(common, either, strict=True) if e]
    return float(np.mean(ious)) if ious else 0.0


def calibration_error_by_hand(confidence: np.ndarray, right: np.ndarray) -> float | None:
    if not confidence.size:
        return None
    total = 0.0
    for m in range(15):
        inside = (confidence * 15 > m * 255) & (confidence * 15 <= (m + 1) * 255)
        if m == 0:
            inside |= confidence == 0
        if inside.any():
            gap = abs(right[inside].mean() - (confidence[inside] / 255).mean())
            total += gap * inside.sum() / confidence.size
    return total


def assert_equal(ours: Scores, theirs: Scores) -> None:
    for name in ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-12), name
    assert [iou is None for iou in ours.per_class_iou] == [iou is None for iou in theirs.per_class_iou]
    assert [iou or 0.0 for iou in ours.per_class_iou] == pytest.approx([iou or 0.0 for iou in theirs.per_class_iou])


def measure(
    pairs: list[tuple[np.ndarray, np.ndarray]], classes: int = 3, ignore_id: int | None = 255, ratio: float = 0.02
) -> Measures:
    meter = FullMeter(classes, ignore_id, ratio)
    for predicted, truth in pairs:
        meter.update(predicted, truth, np.full(truth.shape, 255, np.uint8))
    return meter.compute()


@CASES
@settings(max_examples=50)
def test_every_measure_equals_one_computed_pixel_by_pixel(
    seed: int, classes: int, used: int, ignore_id: int | None
) -> None:
    predicted, truth, confidence, windows = random_maps(seed, classes, used, ignore_id)
    pairs = [(p[w], t[w]) for p, t, w in zip(predicted, truth, windows, strict=True)]
    confidences = [c[w] for c, w in zip(confidence, windows, strict=True)]
    ratio = (seed % 4) / 10
    meter = FullMeter(classes, ignore_id, ratio)
    for (p, t), c in zip(pairs, confidences, strict=True):
        meter.update(p, t, c)
    found = meter.compute()

    matrices = [matrix_by_hand(p, t, classes, ignore_id) for p, t in pairs]
    np.testing.assert_array_equal(found.confusion, sum(matrices))
    assert_equal(found, score_by_hand(sum(matrices)))
    assert len(found.images) == len(matrices)
    for image, matrix in zip(found.images, matrices, strict=True):
        assert_equal(image, score_by_hand(matrix))
    assert found.boundary_iou == pytest.approx(boundary_iou_by_hand(pairs, classes, ignore_id, ratio), abs=1e-12)
    flat_truth, flat_predicted = (np.concatenate([pair[i].reshape(-1) for pair in pairs]) for i in (1, 0))
    labelled = np.ones(flat_truth.shape, bool) if ignore_id is None else flat_truth != ignore_id
    levels = np.concatenate([c.reshape(-1) for c in confidences])[labelled].astype(int)
    expected = calibration_error_by_hand(levels, (flat_truth == flat_predicted)[labelled])
    assert found.calibration_error == (None if expected is None else pytest.approx(expected, abs=1e-12))


@CASES
def test_the_meter_of_training_scores_the_same(seed: int, classes: int, used: int, ignore_id: int | None) -> None:
    predicted, truth, confidence, _ = random_maps(seed, classes, used, ignore_id)
    meter, full = Meter(classes, ignore_id), FullMeter(classes, ignore_id)
    for p, t, c in zip(predicted, truth, confidence, strict=True):
        meter.update(torch.from_numpy(p), torch.from_numpy(t))
        full.update(p, t, c)
    assert meter.compute() == Scores(**{name: getattr(full.compute(), name) for name in vars(meter.compute())})


def test_scores_equal_those_of_torchmetrics() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 5, (40, 50)).astype(np.uint8)
    predicted = np.where(random.random(truth.shape) < 0.4, random.integers(0, 5, truth.shape), truth).astype(np.uint8)
    truth[:5] = 255
    found = measure([(predicted, truth)], classes=5)
    tensors = torch.from_numpy(predicted).long(), torch.from_numpy(truth).long()
    expected = {
        "mean_iou": multiclass_jaccard_index(*tensors, 5, "macro", 255),
        "frequency_weighted_iou": multiclass_jaccard_index(*tensors, 5, "weighted", 255),
        "pixel_accuracy": multiclass_accuracy(*tensors, 5, "micro", ignore_index=255),
        "mean_accuracy": multiclass_accuracy(*tensors, 5, "macro", ignore_index=255),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value.item(), abs=1e-6), name


def test_a_class_that_occurs_nowhere_is_left_out_of_every_mean() -> None:
    assert score(torch.tensor([[8, 0, 0], [0, 2, 0], [0, 0, 0]])) == Scores(1.0, 1.0, 1.0, 1.0, (1.0, 1.0, None))


def test_a_class_that_is_only_predicted_has_an_iou_of_zero_and_no_accuracy() -> None:
    scores = score(torch.tensor([[5, 0, 5], [0, 0, 0], [0, 0, 0]]))
    assert scores == Scores(0.25, 0.5, 0.5, 0.5, (0.5, None, 0.0))


def test_no_labelled_pixel_scores_zero_and_not_nan() -> None:
    found = measure([(np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))], classes=2)
    assert_equal(found, Scores(0.0, 0.0, 0.0, 0.0, (None, None)))
    assert found.boundary_iou == 0.0
    assert found.calibration_error is None
    assert measure([]).images == ()


def test_boundary_iou_sees_a_ragged_edge_that_iou_hardly_does() -> None:
    truth = np.zeros((200, 200), np.uint8)
    truth[:, 100:] = 1
    ragged = truth.copy()
    ragged[::2, 97:103] = 0
    ragged[1::2, 97:103] = 1
    found = measure([(ragged, truth)], classes=2)
    assert found.mean_iou > 0.95
    assert found.boundary_iou < 0.85


def test_a_right_map_has_a_boundary_iou_of_one_whatever_lies_where_there_is_no_label() -> None:
    random = np.random.default_rng(0)
    truth = np.kron(random.integers(0, 3, (6, 8)), np.ones((9, 9))).astype(np.uint8)
    predicted = truth.copy()
    truth[20:24], predicted[20:24] = 255, random.integers(0, 3, (4, 72))
    assert measure([(predicted, truth)]).boundary_iou == 1.0


def test_ids_beyond_a_byte_are_measured() -> None:
    truth = np.zeros((6, 6), np.uint8)
    predicted = np.where(np.eye(6, dtype=bool), 299, 0).astype(np.uint16)
    found = measure([(predicted, truth)], classes=300)
    assert found.confusion[0, 299] == 6
    assert found.pixel_accuracy == 30 / 36


@pytest.mark.parametrize(("level", "hits", "error"), [(255, 100, 0.0), (255, 75, 0.25), (0, 0, 0.0), (51, 100, 0.8)])
def test_calibration_error_is_the_gap_between_confidence_and_accuracy(level: int, hits: int, error: float) -> None:
    pixels, right = np.zeros(256, np.int64), np.zeros(256, np.int64)
    pixels[level], right[level] = 100, hits
    assert expected_calibration_error(pixels, right) == pytest.approx(error)


def test_too_sure_and_too_unsure_confidences_do_not_make_up_for_each_other() -> None:
    pixels, right = np.zeros(256, np.int64), np.zeros(256, np.int64)
    pixels[51], right[51] = 50, 50  # 0.2 sure and always right
    pixels[204] = 50  # 0.8 sure and never right
    assert expected_calibration_error(pixels, right) == pytest.approx(0.8)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import Meter, Scores, score


def score_by_hand(predicted: np.ndarray, truth: np.ndarray, classes: int, ignore_id: int | None) -> Scores:
    """One confusion matrix, filled pixel by pixel."""
    matrix = np.zeros((classes, classes), int)
    for p, t in zip(predicted.reshape(-1), truth.reshape(-1), strict=True):
        if t != ignore_id:
            matrix[t, p] += 1
    ious = []
    for i in range(classes):
        union = matrix[i].sum() + matrix[:, i].sum() - matrix[i, i]
        ious.append(matrix[i, i] / union if union else None)
    present = [iou for iou in ious if iou is not None]
    total = matrix.sum()
    return Scores(np.mean(present) if present else 0.0, np.trace(matrix) / total if total else 0.0, tuple(ious))


def assert_equal(ours: Scores, theirs: Scores) -> None:
    assert ours.mean_iou == pytest.approx(theirs.mean_iou, abs=1e-12)
    assert ours.pixel_accuracy == pytest.approx(theirs.pixel_accuracy, abs=1e-12)
    assert [iou is None for iou in ours.per_class_iou] == [iou is None for iou in theirs.per_class_iou]
    assert [iou or 0.0 for iou in ours.per_class_iou] == pytest.approx([iou or 0.0 for iou in theirs.per_class_iou])


@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 6),
    used=st.integers(1, 6),
    ignore_id=st.sampled_from([None, 255, 6]),
)
def test_scores_equal_those_of_a_matrix_filled_by_hand(
    seed: int, classes: int, used: int, ignore_id: int | None
) -> None:
    random = np.random.default_rng(seed)
    shape = (3, random.integers(1, 6), random.integers(1, 6))
    predicted = random.integers(0, min(used, classes), shape).astype(np.uint8)
    truth = random.integers(0, min(used, classes), shape).astype(np.uint8)
    if ignore_id is not None:
        truth[random.random(shape) < 0.3] = ignore_id
    meter = Meter(classes, ignore_id)
    for p, t in zip(predicted, truth, strict=True):
        meter.update(torch.from_numpy(p), torch.from_numpy(t))
    assert_equal(meter.compute(), score_by_hand(predicted, truth, classes, ignore_id))


def test_a_class_that_occurs_nowhere_is_left_out_of_the_mean() -> None:
    scores = score(torch.tensor([[8, 0, 0], [0, 2, 0], [0, 0, 0]]))
    assert scores == Scores(1.0, 1.0, (1.0, 1.0, None))


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    scores = score(torch.tensor([[5, 0, 5], [0, 0, 0], [0, 0, 0]]))
    assert scores.per_class_iou == (0.5, None, 0.0)
    assert scores.mean_iou == 0.25


def test_no_labelled_pixel_scores_zero_and_not_nan() -> None:
    meter = Meter(2, 255)
    meter.update(torch.zeros(4, 4), torch.full((4, 4), 255))
    assert meter.compute() == Scores(0.0, 0.0, (None, None))


def test_reset_forgets() -> None:
    meter = Meter(2, 255)
    meter.update(torch.ones(2, 2), torch.zeros(2, 2))
    meter.reset()
    meter.update(torch.ones(2, 2), torch.ones(2, 2))
    assert meter.compute().mean_iou == 1.0

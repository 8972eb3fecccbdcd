import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.config import from_plain
from training.contents import Contents
from training.losses import SegmentationLoss, balance_classes, cross_entropy

IGNORED = 255


def some_scores(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 3, (2, 5, 7), generator=generator)
    masks[0, :2] = IGNORED
    return torch.randn(2, 3, 5, 7, generator=generator), masks


def loss_of(scores: Tensor, masks: Tensor, **options: float) -> Tensor:
    loss: Tensor = SegmentationLoss(from_plain({"data": "d", "backbone": "b", **options}), IGNORED)(scores, masks)
    return loss


def pixel_losses(scores: Tensor, masks: Tensor) -> Tensor:
    kept = masks != IGNORED
    log_probabilities = scores.log_softmax(1).permute(0, 2, 3, 1)[kept]
    return -log_probabilities[torch.arange(len(log_probabilities)), masks[kept]]


def test_a_sum_is_the_mean_times_the_labelled_pixels() -> None:
    scores, masks = some_scores()
    total = cross_entropy(scores, masks, IGNORED, reduction="sum")
    torch.testing.assert_close(total, pixel_losses(scores, masks).sum())
    mean = cross_entropy(scores, masks, IGNORED)
    torch.testing.assert_close(total, mean * (masks != IGNORED).sum())


def test_class_weights_weigh_each_pixel_by_its_class() -> None:
    scores, masks = some_scores()
    weights = torch.tensor([1.0, 0.0, 3.0])
    of_pixels = weights[masks[masks != IGNORED]]
    expected = (pixel_losses(scores, masks) * of_pixels).sum() / of_pixels.sum()
    torch.testing.assert_close(cross_entropy(scores, masks, IGNORED, weights=weights), expected)


@given(share=st.floats(0.01, 1), seed=st.integers(0, 20))
def test_hard_example_mining_counts_the_pixels_with_the_highest_loss(share: float, seed: int) -> None:
    scores, masks = some_scores(seed)
    hardest = pixel_losses(scores, masks).sort(descending=True).values
    kept = max(1, int((torch.tensor(len(hardest)) * share).ceil()))
    found = cross_entropy(scores, masks, IGNORED, hardest=share)
    torch.testing.assert_close(found, hardest[:kept].mean())


@pytest.mark.parametrize("options", [{}, {"dice": 1.0}, {"lovasz": 1.0}, {"ohem": 0.3}, {"dice": 0.5, "lovasz": 0.5}])
def test_a_batch_without_a_label_costs_nothing_and_has_finite_gradients(options: dict[str, float]) -> None:
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = loss_of(scores, torch.full((1, 4, 4), IGNORED), **options)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.abs().max() == 0


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_region_losses_vanish_for_the_truth_and_do_not_look_where_no_label_is(name: str) -> None:
    scores, masks = some_scores()
    truth = torch.nn.functional.one_hot(masks.where(masks != IGNORED, 0), 3).permute(0, 3, 1, 2) * 100.0
    assert loss_of(truth, masks, **{name: 1.0}) < 1e-3
    changed = scores.where((masks != IGNORED)[:, None], torch.randn_like(scores))
    torch.testing.assert_close(loss_of(scores, masks, **{name: 1.0}), loss_of(changed, masks, **{name: 1.0}))
    assert loss_of(scores, masks, **{name: 1.0}) > cross_entropy(scores, masks, IGNORED)


def test_the_usual_loss_reads_nothing_back_from_its_device() -> None:
    scores, masks = some_scores()
    loss = SegmentationLoss(from_plain({"data": "d", "backbone": "b"}), IGNORED, torch.ones(3))
    assert loss.to("meta")(scores.to("meta"), masks.to("meta")).shape == ()  # where there is nothing to be read


def contents(pixels: tuple[int, ...], extent: tuple[int, ...]) -> Contents:
    return Contents(1, pixels, extent, 0, (1, 1), True, (), ())


def test_median_frequency_balancing_weighs_by_the_images_that_hold_a_class() -> None:
    found = balance_classes(contents((60, 20, 5), (100, 100, 50)), "median")
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([0.2 / 0.6, 1.0, 0.2 / 0.1]))
    root = balance_classes(contents((60, 20, 5), (100, 100, 50)), "sqrt-median")
    torch.testing.assert_close(root, found.sqrt())


def test_a_class_without_pixels_has_a_finite_weight_and_none_asked_for_is_none() -> None:
    found = balance_classes(contents((60, 0), (60, 0)), "median")
    assert found is not None
    assert found.tolist() == [1.0, 1.0]
    assert balance_classes(contents((60, 0), (60, 0)), "none") is None

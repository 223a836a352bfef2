"""Losses: the derivative, the normaliser, extremes; what they are is in test_training_oracle.py."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nmsfree_training.config import STRIDES
from nmsfree_training.criterion.assignment import Assignment, Targets, assign, pad_targets
from nmsfree_training.criterion.losses import (
    PUBLISHED,
    detector_losses,
    head_losses,
    padded_cells,
    quality_focal_loss,
)
from nmsfree_training.model.boxes import anchor_points, decode, giou
from nmsfree_training.model.detector import Prediction

SHAPES = [(8, 8), (4, 4), (2, 2)]  # levels of a 64 × 64 input
CLASSES = 4


def make_prediction(images: int, seed: int = 0) -> Prediction:
    random = torch.Generator().manual_seed(seed)
    points, strides = anchor_points(SHAPES, STRIDES)
    logits = torch.randn(images, len(points), CLASSES, generator=random)
    deltas = torch.randn(images, len(points), 4, generator=random) * 0.5 + 0.5
    return Prediction(logits, decode(deltas, points, strides), points, strides, SHAPES)


def some_targets() -> Targets:
    first = torch.tensor([[4.0, 4, 30, 28], [20, 30, 60, 62]]), torch.tensor([1, 3])
    second = torch.tensor([[10.0, 12, 50, 40]]), torch.tensor([0])
    return pad_targets([first[0], second[0]], [first[1], second[1]])


def test_gradient_is_that_of_automatic_differentiation() -> None:
    random = torch.Generator().manual_seed(4)
    values = 5 * torch.randn(2, 40, 7, generator=random)
    labels = torch.randint(8, (2, 40), generator=random)
    metrics = torch.rand(2, 40, generator=random) * (labels < 7)
    fast, slow = values.clone().requires_grad_(), values.clone().requires_grad_()
    found = quality_focal_loss(fast, Assignment(labels, torch.zeros(2, 40, 4), metrics))
    target = F.one_hot(labels, 8)[..., :7] * metrics[..., None]
    bce = F.binary_cross_entropy_with_logits(slow, target, reduction="none")
    want = (bce * (target - slow.sigmoid()) ** 2).sum(dim=2)
    torch.testing.assert_close(found, want, rtol=2e-5, atol=1e-6)
    weights = torch.rand(2, 40, generator=random)
    for _ in range(2):  # the graph can be kept and used again
        (found * weights).sum().backward(retain_graph=True)
    (2 * want * weights).sum().backward()
    assert fast.grad is not None and slow.grad is not None
    torch.testing.assert_close(fast.grad, slow.grad, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("others", [0.0, 3.5, -1e6])
def test_normaliser_is_averaged_over_processes_then_limited(others: float) -> None:
    """As if a second process had metrics of `others` in sum; the last is below 1 in the mean."""
    prediction, targets = make_prediction(2), some_targets()
    seen: list[Tensor] = []

    def average(metrics: Tensor) -> Tensor:
        seen.append(metrics)
        return (metrics + others) / 2

    alone = head_losses("o2m", prediction, targets)
    together = head_losses("o2m", prediction, targets, reduce=average)
    (metrics,) = seen
    assert metrics.shape == () and not metrics.requires_grad
    p = prediction
    found = assign(p.logits, p.boxes, p.points, p.strides, targets, PUBLISHED["o2m"])
    assert metrics.item() == pytest.approx(found.metrics.sum().item(), rel=1e-6)
    assert metrics.item() > 2
    ratio = metrics.item() / max(1.0, (metrics.item() + others) / 2)
    for a, b in ((alone.cls, together.cls), (alone.box, together.box)):
        assert b.item() == pytest.approx(a.item() * ratio, rel=1e-5)
    both = detector_losses({"o2m": prediction}, targets, reduce=average)
    assert both["o2m"].total.equal(together.total)


def test_padded_cells_follow_the_nearest_pixel() -> None:
    padding = torch.zeros(1, 64, 64, dtype=torch.bool)
    padding[0, :, 40:] = True
    cells = padded_cells(padding, SHAPES)
    assert cells.shape == (1, 84)
    levels = [
        c.reshape(shape) for c, shape in zip(cells[0].split([64, 16, 4]), SHAPES, strict=True)
    ]
    for level, stride in zip(levels, STRIDES, strict=True):
        # Nearest takes the upper left pixel of a cell.
        want = torch.arange(0, 64, stride) >= 40
        assert torch.equal(level, want.expand(level.shape))


def test_extreme_logits_stay_finite() -> None:
    prediction, targets = make_prediction(2), some_targets()
    p = prediction
    for scale in (1e3, -1e3):
        logits = (p.logits * scale).requires_grad_()
        loss = head_losses("o2o", Prediction(logits, p.boxes, p.points, p.strides, SHAPES), targets)
        loss.total.backward()
        assert math.isfinite(loss.total.item())
        assert logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("size", [20.0, 45.0, 60.0])
def test_boxes_of_any_size_in_the_background_change_nothing(size: float) -> None:
    """exp(45) strides squared is beyond float32, and infinity − infinity is not a number."""
    points, strides = anchor_points(SHAPES, STRIDES)
    random, targets = torch.Generator().manual_seed(0), some_targets()
    deltas = torch.randn(2, len(points), 4, generator=random) * 0.5 + 0.5
    logits = torch.randn(2, len(points), CLASSES, generator=random)
    background = 7  # at the upper right, outside both objects of the first image
    assert points[background].tolist() == [60, 4]
    deltas[0, background] = torch.tensor([0.0, 0.0, -3.0, -3.0])
    huge = deltas.clone()
    huge[0, background, 2:] = size
    made = []
    for values in (deltas, huge):
        values.requires_grad_()
        boxes = decode(values, points, strides)
        loss = head_losses("o2m", Prediction(logits, boxes, points, strides, SHAPES), targets)
        loss.total.backward()
        assert values.grad is not None and bool(values.grad.isfinite().all())
        assert not values.grad[0, background].any()
        made.append((loss.total.item(), values.grad))
    assert math.isfinite(made[1][0])
    assert made[0][0] == made[1][0] and made[0][1].equal(made[1][1])


def test_two_boxes_without_area_have_a_finite_slope() -> None:
    """What stands in for the background's boxes, against background."""
    for where in (0.0, 5.0):
        boxes = torch.full((1, 4), where, requires_grad=True)
        value = giou(boxes, torch.full((1, 4), where)).sum()
        value.backward()
        assert math.isfinite(value.item())
        assert boxes.grad is not None and bool(boxes.grad.isfinite().all())

"""Losses: targets, weights, padding, and what must not change them."""

import math

import pytest
import torch
from torch import Tensor

from nmsfree_training.assign import Assignment, Targets, assign, pad_targets
from nmsfree_training.boxes import anchor_points, decode
from nmsfree_training.config import STRIDES
from nmsfree_training.detector import Prediction
from nmsfree_training.losses import (
    BOX_WEIGHT,
    TOPK,
    Losses,
    head_losses,
    padded_cells,
    quality_focal_loss,
)

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


def only(prediction: Prediction, image: int) -> Prediction:
    rows = slice(image, image + 1)
    p = prediction
    return Prediction(p.logits[rows], p.boxes[rows], p.points, p.strides, p.shapes)


def test_quality_focal_loss_by_hand() -> None:
    logits = torch.tensor([[[0.3, -1.2], [2.0, 0.1]]])
    assignment = Assignment(
        labels=torch.tensor([[1, 2]]),  # cell 0 has class 1, cell 1 is background
        boxes=torch.zeros(1, 2, 4),
        metrics=torch.tensor([[0.7, 0.0]]),
    )
    loss = quality_focal_loss(logits, assignment)
    for cell, column, target in ((0, 0, 0.0), (0, 1, 0.7), (1, 0, 0.0), (1, 1, 0.0)):
        p = 1 / (1 + math.exp(-logits[0, cell, column].item()))
        bce = -target * math.log(p) - (1 - target) * math.log(1 - p)
        assert loss[0, cell, column].item() == pytest.approx(bce * (target - p) ** 2, rel=1e-5)


def test_quality_focal_loss_is_zero_where_the_score_is_the_metric() -> None:
    metric = torch.tensor([[0.8]])
    assignment = Assignment(torch.tensor([[0]]), torch.zeros(1, 1, 4), metric)
    logits = torch.logit(metric)[..., None].requires_grad_()
    loss = quality_focal_loss(logits, assignment).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert logits.grad is not None and logits.grad.abs().max() < 1e-5


def test_gradient_flows_through_the_modulating_factor() -> None:
    logits = torch.tensor([[[0.4]]], dtype=torch.float64, requires_grad=True)
    assignment = Assignment(torch.tensor([[0]]), torch.zeros(1, 1, 4), torch.tensor([[0.9]]))

    def value(x: Tensor) -> Tensor:
        return quality_focal_loss(x, assignment)

    assert torch.autograd.gradcheck(value, (logits,), eps=1e-4, atol=1e-3)


def test_total_weighs_boxes_twice() -> None:
    assert BOX_WEIGHT == 2
    assert Losses(torch.tensor(1.5), torch.tensor(0.25)).total.item() == 2.0


@pytest.mark.parametrize("head", ["o2m", "o2o"])
def test_batch_is_the_sum_over_images(head: str) -> None:
    """Both are normalised by the sum of metrics: undo that, and images add up."""
    prediction, targets = make_prediction(2), some_targets()
    together = head_losses(head, prediction, targets)  # type: ignore[arg-type]
    alone, sums = [], []
    for image in range(2):
        rows = slice(image, image + 1)
        t = Targets(targets.boxes[rows], targets.labels[rows], targets.valid[rows])
        alone.append(head_losses(head, only(prediction, image), t))  # type: ignore[arg-type]
        sums.append(_metric_sum(head, only(prediction, image), t))
    scaled = sum(max(1.0, s) * loss.total.item() for s, loss in zip(sums, alone, strict=True))
    assert together.total.item() == pytest.approx(scaled / max(1.0, sum(sums)), rel=1e-5)


def _metric_sum(head: str, p: Prediction, targets: Targets) -> float:
    found = assign(p.logits, p.boxes, p.points, p.strides, targets, TOPK[head])  # type: ignore[index]
    return found.metrics.sum().item()


def test_no_objects_leave_only_background_loss() -> None:
    prediction = make_prediction(2)
    empty = pad_targets([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
    loss = head_losses("o2o", prediction, empty)
    p = prediction.logits.sigmoid()
    assert loss.box.item() == 0
    assert loss.cls.item() == pytest.approx((-(1 - p).log() * p**2).sum().item(), rel=1e-4)


def test_perfect_boxes_cost_nothing() -> None:
    prediction, targets = make_prediction(2), some_targets()
    boxes = targets.boxes[:, :1].expand(-1, len(prediction.points), -1)
    targets = Targets(targets.boxes[:, :1], targets.labels[:, :1], targets.valid[:, :1])
    p = prediction
    perfect = Prediction(p.logits, boxes.contiguous(), p.points, p.strides, p.shapes)
    assert head_losses("o2m", perfect, targets).box.item() == pytest.approx(0, abs=1e-6)


def test_padding_leaves_cells_out_of_the_class_loss_only() -> None:
    prediction, targets = make_prediction(2), some_targets()
    padding = torch.zeros(2, 64, 64, dtype=torch.bool)
    assert head_losses("o2m", prediction, targets, padding).total.equal(
        head_losses("o2m", prediction, targets).total
    )
    padding[:, :, 32:] = True
    masked = head_losses("o2m", prediction, targets, padding)
    whole = head_losses("o2m", prediction, targets)
    assert masked.box.equal(whole.box)
    assert masked.cls < whole.cls
    padding[:] = True
    assert head_losses("o2m", prediction, targets, padding).cls.item() == 0


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

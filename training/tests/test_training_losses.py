"""Losses: targets, weights, padding, and what must not change them."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nmsfree_training.config import STRIDES
from nmsfree_training.criterion.assignment import Assignment, Targets, assign, pad_targets
from nmsfree_training.criterion.losses import (
    BOX_WEIGHT,
    PUBLISHED,
    Losses,
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


def only(prediction: Prediction, image: int) -> Prediction:
    rows = slice(image, image + 1)
    p = prediction
    return Prediction(p.logits[rows], p.boxes[rows], p.points, p.strides, p.shapes)


def focal_term(x: float, target: float) -> float:
    p = 1 / (1 + math.exp(-x))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p)) * (target - p) ** 2


def test_quality_focal_loss_by_hand() -> None:
    logits = torch.tensor([[[0.3, -1.2], [2.0, 0.1]]])
    assignment = Assignment(
        labels=torch.tensor([[1, 2]]),  # cell 0 has class 1, cell 1 is background
        boxes=torch.zeros(1, 2, 4),
        metrics=torch.tensor([[0.7, 0.0]]),
    )
    loss = quality_focal_loss(logits, assignment)
    assert loss.shape == (1, 2)
    assert loss[0, 0].item() == pytest.approx(focal_term(0.3, 0) + focal_term(-1.2, 0.7), rel=1e-5)
    assert loss[0, 1].item() == pytest.approx(focal_term(2.0, 0) + focal_term(0.1, 0), rel=1e-5)


def test_quality_focal_loss_is_zero_where_the_score_is_the_metric() -> None:
    metric = torch.tensor([[0.8]])
    assignment = Assignment(torch.tensor([[0]]), torch.zeros(1, 1, 4), metric)
    logits = torch.logit(metric)[..., None].requires_grad_()
    loss = quality_focal_loss(logits, assignment).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert logits.grad is not None and logits.grad.abs().max() < 1e-5


@pytest.mark.parametrize("scale", [0.5, 4.0, 30.0])
def test_gradient_flows_through_the_modulating_factor(scale: float) -> None:
    """The written-out derivative is the numerical one, for objects and background."""
    random = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(2, 5, 3, generator=random, dtype=torch.float64)
    assignment = Assignment(
        torch.tensor([[0, 3, 2, 1, 3], [3, 3, 0, 1, 1]]),
        torch.zeros(2, 5, 4),
        torch.tensor([[0.9, 0, 0.1, 1, 0], [0, 0, 0.5, 0.0, 0.3]], dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(
        lambda x: quality_focal_loss(x, assignment), (logits.requires_grad_(),)
    )


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
    found = assign(p.logits, p.boxes, p.points, p.strides, targets, PUBLISHED[head])  # type: ignore[index]
    return found.metrics.sum().item()


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
    assert metrics.item() == pytest.approx(_metric_sum("o2m", prediction, targets), rel=1e-6)
    assert metrics.item() > 2
    ratio = metrics.item() / max(1.0, (metrics.item() + others) / 2)
    for a, b in ((alone.cls, together.cls), (alone.box, together.box)):
        assert b.item() == pytest.approx(a.item() * ratio, rel=1e-5)
    both = detector_losses({"o2m": prediction}, targets, reduce=average)
    assert both["o2m"].total.equal(together.total)


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

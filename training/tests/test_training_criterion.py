"""Assignment, losses and gradients against the authors' implementation."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmsfree_training.config import STRIDES, HeadName
from nmsfree_training.criterion.assignment import Targets, assign, pad_targets
from nmsfree_training.criterion.losses import PUBLISHED, Losses, detector_losses, head_losses
from nmsfree_training.model.boxes import anchor_points
from nmsfree_training.model.detector import Prediction

IMAGES = 3
NUM_CLASSES = 80
HEADS = pytest.mark.parametrize("head", ["o2m", "o2o"])

Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture
def numbers(reference: Callable[[str], Arrays]) -> Arrays:
    return reference("criterion")


def prediction(numbers: Arrays, head: str) -> Prediction:
    height, width = int(numbers["height"]), int(numbers["width"])
    shapes = [(height // stride, width // stride) for stride in STRIDES]
    points, strides = anchor_points(shapes, STRIDES)
    logits = torch.tensor(numbers[f"{head}/logits"], requires_grad=True)
    boxes = torch.tensor(numbers[f"{head}/boxes"], requires_grad=True)
    return Prediction(logits, boxes, points, strides, shapes)


def targets(numbers: Arrays) -> Targets:
    return pad_targets(
        [torch.tensor(numbers[f"gt{i}/boxes"]) for i in range(IMAGES)],
        [torch.tensor(numbers[f"gt{i}/labels"]) for i in range(IMAGES)],
    )


def losses(numbers: Arrays, p: Prediction, head: HeadName) -> Losses:
    return head_losses(head, p, targets(numbers), torch.tensor(numbers["mask"]))


def relative(value: Tensor, want: NDArray[np.generic]) -> float:
    return abs(value.item() / float(want) - 1)


@HEADS
def test_assignment_is_exact(numbers: Arrays, head: HeadName) -> None:
    p = prediction(numbers, head)
    found = assign(p.logits, p.boxes, p.points, p.strides, targets(numbers), PUBLISHED[head])
    for i in range(IMAGES):
        labels = numbers[f"{head}/{i}/assigned_labels"]
        np.testing.assert_array_equal(found.labels[i], labels)
        positive = labels < NUM_CLASSES
        boxes = numbers[f"{head}/{i}/assigned_boxes"]
        np.testing.assert_array_equal(found.boxes[i][positive], boxes[positive])
        metrics = numbers[f"{head}/{i}/assign_metrics"]
        np.testing.assert_allclose(found.metrics[i], metrics, rtol=0, atol=1e-6)
    counts = [(numbers[f"{head}/{i}/assigned_labels"] < NUM_CLASSES).sum() for i in range(IMAGES)]
    assert counts[1] == 0 and counts[0] > 0 and counts[2] > 0  # the fixture is worth comparing


@HEADS
def test_losses_and_gradient_norms(numbers: Arrays, head: HeadName) -> None:
    p = prediction(numbers, head)
    found = losses(numbers, p, head)
    assert relative(found.cls, numbers[f"{head}/loss_cls"]) < 1e-4
    assert relative(found.box, numbers[f"{head}/loss_reg"]) < 1e-4
    assert relative(found.total, numbers[f"{head}/loss"]) < 1e-4
    found.total.backward()
    assert p.logits.grad is not None and p.boxes.grad is not None
    assert relative(p.logits.grad.norm(), numbers[f"{head}/grad_logits_norm"]) < 1e-4
    assert relative(p.boxes.grad.norm(), numbers[f"{head}/grad_boxes_norm"]) < 1e-4


def test_both_heads_add_up(numbers: Arrays) -> None:
    predictions: dict[str, Prediction] = {head: prediction(numbers, head) for head in PUBLISHED}
    mask = torch.tensor(numbers["mask"])
    both = detector_losses(predictions, targets(numbers), mask)
    assert list(both) == ["o2m", "o2o"]
    total = sum(loss.total.item() for loss in both.values())
    want = float(numbers["o2m/loss"]) + float(numbers["o2o/loss"])
    assert total == pytest.approx(want, rel=1e-4)


@HEADS
def test_half_precision_inputs_are_computed_in_float32(numbers: Arrays, head: HeadName) -> None:
    p = prediction(numbers, head)
    low = Prediction(p.logits.bfloat16(), p.boxes, p.points, p.strides, p.shapes)
    rounded = Prediction(low.logits.float(), p.boxes, p.points, p.strides, p.shapes)
    assert losses(numbers, low, head).total.dtype == torch.float32
    assert torch.equal(losses(numbers, low, head).total, losses(numbers, rounded, head).total)

"""Quality focal loss for classes (arXiv:2006.04388), GIoU loss for boxes, and their sum."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nmsfree_training.config import HeadName, Matching
from nmsfree_training.criterion.assignment import Assignment, Targets, assign
from nmsfree_training.model.boxes import giou
from nmsfree_training.model.detector import Prediction

# As published: the number of cells is the only difference between the two heads.
PUBLISHED: dict[HeadName, Matching] = {"o2m": Matching(topk=13), "o2o": Matching(topk=1)}
BOX_WEIGHT = 2.0

Reduce = Callable[[Tensor], Tensor]  # a scalar of this process → its average over processes


@dataclass(frozen=True)
class Losses:
    """Scalars: `total` = `cls` + 2 · `box`."""

    cls: Tensor
    box: Tensor

    @property
    def total(self) -> Tensor:
        return self.cls + BOX_WEIGHT * self.box


def quality_focal_loss(logits: Tensor, assignment: Assignment) -> Tensor:
    """Per cell, summed over classes, float [N, M] of logits [N, M, C]; beta 2.

    The target is the assignment's metric at the assigned class and 0 elsewhere. The modulating
    factor |target − p|² carries gradient too.
    """
    labels, metrics = assignment.labels, assignment.metrics
    loss: Tensor = _QualityFocalLoss.apply(logits, labels, metrics)  # type: ignore[no-untyped-call]
    return loss


class _QualityFocalLoss(torch.autograd.Function):
    """Loss and slope together, in three arrays of the logits' size.

    With p = sigmoid(x), target t and e = p − t, the loss is BCE · e² and its derivative by x is
    e · (e² + 2 · BCE · p · (1 − p)), because BCE' = e. Nearly all targets are 0, where BCE is
    softplus(x): that is computed everywhere, and the assigned classes are put in afterwards.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, metrics: Tensor) -> Tensor:
        p = logits.sigmoid()
        loss = F.softplus(logits)
        slope = (1 - p).mul_(loss).mul_(2).add_(p)
        square = p.square_()
        slope *= square
        loss *= square
        # On background this rewrites the first class, at its target of 0.
        own = labels.masked_fill(labels == logits.shape[2], 0)[..., None]  # [N, M, 1]
        own_loss, own_slope = _at_target(logits.gather(2, own), metrics[..., None])
        loss.scatter_(2, own, own_loss)
        slope.scatter_(2, own, own_slope)
        ctx.save_for_backward(slope)
        return loss.sum(dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * upstream[..., None], None, None


def _at_target(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and slope at any targets."""
    p = logits.sigmoid()
    error = p - target
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    square = error.square()
    return bce * square, error * (square + 2 * bce * p * (1 - p))


def head_losses(
    head: HeadName,
    prediction: Prediction,
    targets: Targets,
    padding: Tensor | None = None,
    *,
    matching: Matching | None = None,
    reduce: Reduce | None = None,
) -> Losses:
    """Assign and compute the losses of one head, in float32.

    Args:
        padding: bool [N, H, W], True where a pixel is padding; cells there (nearest) are left
            out of the class loss, and of nothing else.
        matching: None = as published.
        reduce: averages the sum of metrics (a scalar without gradient) over the processes.
    """
    logits, boxes = prediction.logits.float(), prediction.boxes.float()
    matching = matching or PUBLISHED[head]
    assignment = assign(
        logits.detach(), boxes.detach(), prediction.points, prediction.strides, targets, matching
    )
    metrics = assignment.metrics.sum()
    normaliser = (metrics if reduce is None else reduce(metrics)).clamp(min=1.0)
    cls = quality_focal_loss(logits, assignment)
    if padding is not None:
        cls = cls * ~padded_cells(padding, prediction.shapes)
    # Dense over all cells: background has metric 0, and no positives need to be counted. Its boxes
    # go first: one whose area overflows has a GIoU of NaN, which 0 does not take away again.
    own_boxes = boxes.masked_fill((assignment.metrics == 0)[..., None], 0.0)
    box = (1 - giou(own_boxes, assignment.boxes)) * assignment.metrics
    return Losses(cls.sum() / normaliser, box.sum() / normaliser)


def padded_cells(padding: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    """bool [N, H, W] → bool [N, M], by nearest resize to every level."""
    mask = padding[:, None].view(torch.uint8)
    levels = [F.interpolate(mask, size=shape, mode="nearest").flatten(1) for shape in shapes]
    return torch.cat(levels, dim=1).bool()


def detector_losses(
    predictions: dict[str, Prediction],
    targets: Targets,
    padding: Tensor | None = None,
    *,
    matching: Mapping[HeadName, Matching] = PUBLISHED,
    reduce: Reduce | None = None,
) -> dict[HeadName, Losses]:
    """Losses of every head; train on the weighted sum of their totals."""
    return {
        head: head_losses(head, predictions[head], targets, padding, matching=own, reduce=reduce)
        for head, own in matching.items()
        if head in predictions
    }

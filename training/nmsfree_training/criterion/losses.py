"""Quality focal loss for classes (arXiv:2006.04388), GIoU loss for boxes, and their sum."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nmsfree_training.config import Matching
from nmsfree_training.criterion.assignment import Targets, assign
from nmsfree_training.model.boxes import giou
from nmsfree_training.model.detector import Prediction

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


class QualityFocalLoss(torch.autograd.Function):
    """Per cell, summed over classes, float [N, M] of logits [N, M, C]; beta 2.

    The target is the assignment's metric at the assigned class and 0 elsewhere. The modulating
    factor |target − p|² carries gradient too.

    Loss and slope are computed together, in three arrays of the logits' size. With p = sigmoid(x),
    target t and e = p − t, the loss is BCE · e² and its derivative by x is
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
        x, target = logits.gather(2, own), metrics[..., None]
        p = x.sigmoid()
        error = p - target
        bce = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        square = error.square()
        loss.scatter_(2, own, bce * square)
        slope.scatter_(2, own, error * (square + 2 * bce * p * (1 - p)))
        ctx.save_for_backward(slope)
        return loss.sum(dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * upstream[..., None], None, None


def head_losses(
    prediction: Prediction,
    targets: Targets,
    matching: Matching,
    padding: Tensor | None = None,
    reduce: Reduce | None = None,
) -> Losses:
    """Assign and compute the losses of one head, in float32; train on the weighted sum of totals.

    Args:
        padding: bool [N, H, W], True where a pixel is padding; cells there (nearest) are left
            out of the class loss, and of nothing else.
        reduce: averages the sum of metrics (a scalar without gradient) over the processes.
    """
    logits, boxes = prediction.logits.float(), prediction.boxes.float()
    found = replace(prediction, logits=logits.detach(), boxes=boxes.detach())
    assignment = assign(found, targets, matching)
    metrics = assignment.metrics.sum()
    normaliser = (metrics if reduce is None else reduce(metrics)).clamp(min=1.0)
    cls: Tensor = QualityFocalLoss.apply(logits, assignment.labels, assignment.metrics)  # type: ignore[no-untyped-call]
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

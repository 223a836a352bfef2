"""Quality focal loss for classes (arXiv:2006.04388), GIoU loss for boxes, and their sum."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nmsfree_training.assign import Assignment, Targets, assign
from nmsfree_training.boxes import giou
from nmsfree_training.config import HeadName
from nmsfree_training.detector import Prediction

TOPK: dict[HeadName, int] = {"o2m": 13, "o2o": 1}  # the only difference between the two heads
BOX_WEIGHT = 2.0


@dataclass(frozen=True)
class Losses:
    """Scalars: `total` = `cls` + 2 · `box`."""

    cls: Tensor
    box: Tensor

    @property
    def total(self) -> Tensor:
        return self.cls + BOX_WEIGHT * self.box


def quality_focal_loss(logits: Tensor, assignment: Assignment) -> Tensor:
    """Per cell and class, float32 [N, M, C], beta 2.

    The target is the assignment metric at the assigned class and 0 elsewhere; the modulating
    factor |target − p|² carries gradient too.
    """
    # One column more than classes takes the background label, and is cut off again.
    one_hot = torch.zeros(*logits.shape[:2], logits.shape[2] + 1, device=logits.device)
    target = one_hot.scatter(2, assignment.labels[..., None], assignment.metrics[..., None])
    target = target[..., :-1]
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return bce * (target - logits.sigmoid()).square()


def head_losses(
    head: HeadName, prediction: Prediction, targets: Targets, padding: Tensor | None = None
) -> Losses:
    """Assign and compute the losses of one head.

    Args:
        prediction: of the head; cast to float32 here.
        padding: bool [N, H, W], True where a pixel is padding; cells there (nearest) are left
            out of the class loss, and of nothing else.
    """
    logits, boxes = prediction.logits.float(), prediction.boxes.float()
    assignment = assign(
        logits.detach(), boxes.detach(), prediction.points, prediction.strides, targets, TOPK[head]
    )
    normaliser = assignment.metrics.sum().clamp(min=1.0)
    cls = quality_focal_loss(logits, assignment)
    if padding is not None:
        cls = cls * ~padded_cells(padding, prediction.shapes)[..., None]
    # Dense over all cells: background has metric 0, and no positives need to be counted.
    box = (1 - giou(boxes, assignment.boxes)) * assignment.metrics
    return Losses(cls.sum() / normaliser, box.sum() / normaliser)


def padded_cells(padding: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    """bool [N, H, W] → bool [N, M], by nearest resize to every level."""
    mask = padding[:, None].float()
    levels = [F.interpolate(mask, size=shape, mode="nearest").flatten(1) for shape in shapes]
    return torch.cat(levels, dim=1) > 0.5


def detector_losses(
    predictions: dict[str, Prediction], targets: Targets, padding: Tensor | None = None
) -> dict[HeadName, Losses]:
    """Losses of every head; train on the sum of their totals."""
    return {
        head: head_losses(head, predictions[head], targets, padding)
        for head in TOPK
        if head in predictions
    }

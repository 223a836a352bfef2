"""The criterion as plain loops over images and objects: slow, and easy to compare with the text.

It shares no code with the package: an oracle for tests, and what the vectorised criterion's speed
is reported against. Cells are float32 vectors, because the figures must be those of training.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LoopResult:
    """Losses of one head (scalars), and per image the object of every cell, −1 = background."""

    cls: Tensor
    box: Tensor
    owners: list[Tensor]
    metrics: list[Tensor]


def loop_losses(
    logits: Tensor,  # [N, M, C]
    boxes: Tensor,  # [N, M, 4] xyxy, pixels
    points: Tensor,  # [M, 2]
    strides: Tensor,  # [M]
    objects: list[tuple[Tensor, Tensor]],  # per image boxes [g, 4] and labels [g]
    padded: Tensor | None,  # bool [N, M], cells without a picture
    topk: int,
    quality: tuple[float, float] | None = None,
) -> LoopResult:
    """Assign every image by itself and add up its losses.

    Args:
        quality: powers of score and IoU in POTO's matching quality; None = the published cost.
    """
    cls, box, metric_sum = torch.zeros(()), torch.zeros(()), torch.zeros(())
    all_owners, all_metrics = [], []
    for i, (truth, labels) in enumerate(objects):
        large = [g for g, b in enumerate(truth.tolist()) if min(b[2] - b[0], b[3] - b[1]) >= 8]
        truth, labels = truth[large], labels[large]
        with torch.no_grad():
            owners, metrics = loop_assign(
                logits[i], boxes[i], points, strides, truth, labels, topk, quality
            )
        positive = owners >= 0
        own_truth, own_labels = truth[owners[positive]], labels[owners[positive]]
        target = torch.zeros_like(logits[i])
        target[positive, own_labels] = metrics[positive]
        giou = _giou(own_truth, boxes[i][positive])
        box = box + ((1 - giou) * metrics[positive]).sum()
        bce = F.binary_cross_entropy_with_logits(logits[i], target, reduction="none")
        loss = bce * (target - logits[i].sigmoid()).abs() ** 2
        cls = cls + (loss if padded is None else loss[~padded[i]]).sum()
        metric_sum = metric_sum + metrics.sum()
        all_owners.append(torch.tensor([large[o] if o >= 0 else -1 for o in owners.tolist()]))
        all_metrics.append(metrics)
    normaliser = max(1.0, metric_sum.item())
    return LoopResult(cls / normaliser, box / normaliser, all_owners, all_metrics)


def loop_assign(
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    truth: Tensor,
    labels: Tensor,
    topk: int,
    quality: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """One image: the object of every cell (int64 [M], −1 = none) and its metric (float [M])."""
    inside = torch.zeros(len(points), dtype=torch.bool)
    for box in truth:
        inside |= ((box[:2] < points) & (points < box[2:])).all(dim=1)
    costs, ious, claims = [], [], dict[int, list[int]]()
    for g, (box, label) in enumerate(zip(truth, labels, strict=True)):
        iou = _iou(box, boxes)
        if quality is None:
            cost = _cost(logits[:, label], iou, points, strides, box)
            cost[~inside] = 1e9
        else:
            cost = _quality_cost(logits[:, label], iou, points, strides, box, quality)
        k = max(1, int(iou.topk(min(topk, len(iou))).values.sum()))
        for cell in cost.topk(k, largest=False).indices.tolist():
            claims.setdefault(cell, []).append(g)
        costs.append(cost)
        ious.append(iou)
    owners = torch.full((len(points),), -1)
    metrics = torch.zeros(len(points))
    for cell, claimants in claims.items():
        owner = claimants[0]
        if len(claimants) > 1:  # the cheapest of all objects, claimant or not
            owner = min(range(len(truth)), key=lambda g: costs[g][cell].item())
        owners[cell], metrics[cell] = owner, ious[owner][cell]
    return owners, metrics


def _cost(logit: Tensor, iou: Tensor, points: Tensor, strides: Tensor, box: Tensor) -> Tensor:
    bce = F.binary_cross_entropy_with_logits(logit, iou, reduction="none")
    class_cost = bce * (iou - logit.sigmoid()).abs() ** 2
    box_cost = 3 * -torch.log(iou + 1e-8)
    centre = (box[:2] + box[2:]) / 2
    distance = ((points - centre) ** 2).sum(dim=1).sqrt()
    return class_cost + box_cost + 10 ** (distance / strides - 3)


def _quality_cost(
    logit: Tensor,
    iou: Tensor,
    points: Tensor,
    strides: Tensor,
    box: Tensor,
    powers: tuple[float, float],
) -> Tensor:
    """−(p^A · IoU^B) where the point is in this box, elsewhere its distance to the centre."""
    quality = logit.sigmoid() ** powers[0] * iou ** powers[1]
    distance = (points - (box[:2] + box[2:]) / 2).norm(dim=1) / strides
    inside = ((box[:2] < points) & (points < box[2:])).all(dim=1)
    return torch.where(inside, -quality, distance)


def _iou(box: Tensor, boxes: Tensor) -> Tensor:
    low, high = torch.maximum(box[:2], boxes[:, :2]), torch.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return shared / ((box[2:] - box[:2]).prod() + areas - shared)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Of box 0 in `a` with box 0 in `b`, and so on; both [P, 4]."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1)
    union = areas - shared
    outer = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    hull = outer.prod(dim=1)
    return shared / union - (hull - union) / hull

"""Label assignment: which cells are responsible for which objects.

One-to-many and one-to-one are two instances of the same dynamic soft-label assigner (the cost of
RTMDet, arXiv:2212.07784, with SimOTA's dynamic k, arXiv:2107.08430): `topk` 13 and 1.
Everything is batched: objects are padded to the largest count G of the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nmsfree_training.boxes import iou

OUTSIDE_COST = 1e9  # of a cell whose point lies inside no object at all
IOU_COST_WEIGHT = 3.0
CENTRE_RADIUS = 3.0  # strides; the centre cost is 10^(distance / stride − 3)
MIN_SIDE = 8.0  # pixels; smaller objects are not assigned


@dataclass(frozen=True)
class Targets:
    """Objects of a batch, padded.

    Attributes:
        boxes: float32 [N, G, 4], xyxy in input pixels.
        labels: int64 [N, G].
        valid: bool [N, G], False in the padding and for objects that are too small.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> "Targets":
        return Targets(
            self.boxes.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.valid.to(device, non_blocking=True),
        )


def pad_targets(boxes: list[Tensor], labels: list[Tensor]) -> Targets:
    """Pad per-image objects (float32 [g, 4] xyxy, int64 [g]) to one batch; drops tiny ones."""
    count = max(1, *(len(b) for b in boxes)) if boxes else 1
    padded_boxes = torch.zeros(len(boxes), count, 4)
    padded_labels = torch.zeros(len(boxes), count, dtype=torch.int64)
    valid = torch.zeros(len(boxes), count, dtype=torch.bool)
    for i, (b, c) in enumerate(zip(boxes, labels, strict=True)):
        padded_boxes[i, : len(b)] = b
        padded_labels[i, : len(b)] = c
        valid[i, : len(b)] = (b[:, 2:] - b[:, :2]).min(dim=1).values >= MIN_SIDE
    return Targets(padded_boxes, padded_labels, valid)


@dataclass(frozen=True)
class Assignment:
    """Per cell: its object, if any.

    Attributes:
        labels: int64 [N, M]; the number of classes C means background.
        boxes: float32 [N, M, 4], xyxy of the assigned object; zeros for background.
        metrics: float32 [N, M], IoU with the assigned object; zero for background.
    """

    labels: Tensor
    boxes: Tensor
    metrics: Tensor


@torch.no_grad()
def assign(
    logits: Tensor, boxes: Tensor, points: Tensor, strides: Tensor, targets: Targets, topk: int
) -> Assignment:
    """Assign cells to objects.

    Args:
        logits: float32 [N, M, C].
        boxes: float32 [N, M, 4], decoded, xyxy in input pixels.
        points, strides: float32 [M, 2] and [M].
        topk: how many of the largest IoUs of an object are summed to k, its number of cells.
    """
    num_classes = logits.shape[-1]
    ious = iou(targets.boxes[:, :, None], boxes[:, None])  # [N, G, M]
    cost = _cost(logits, points, strides, targets, ious)
    claimed = _claims(cost, ious, targets.valid, topk)
    # A cell claimed by several goes to the cheapest of all objects for that cell.
    best = cost.argmin(dim=1)  # [N, M]
    several = claimed.sum(dim=1) > 1
    owner = torch.where(several, best, claimed.int().argmax(dim=1))
    positive = claimed.any(dim=1)  # [N, M]
    labels = targets.labels.gather(1, owner).masked_fill(~positive, num_classes)
    metrics = ious.gather(1, owner[:, None])[:, 0].masked_fill(~positive, 0.0)
    owner_boxes = targets.boxes.gather(1, owner[..., None].expand(-1, -1, 4))
    return Assignment(labels, owner_boxes.masked_fill(~positive[..., None], 0.0), metrics)


def _cost(
    logits: Tensor, points: Tensor, strides: Tensor, targets: Targets, ious: Tensor
) -> Tensor:
    """[N, G, M]: class cost + box cost + centre cost."""
    index = targets.labels[..., None].expand(-1, -1, logits.shape[1])
    own_logits = logits.transpose(1, 2).gather(1, index)  # logit of the object's class, [N, G, M]
    class_cost = F.binary_cross_entropy_with_logits(own_logits, ious, reduction="none")
    class_cost = class_cost * (ious - own_logits.sigmoid()).square()
    box_cost = -(ious + 1e-8).log() * IOU_COST_WEIGHT
    centres = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    distance = (points - centres[:, :, None]).square().sum(dim=-1).sqrt() / strides
    cost = class_cost + box_cost + 10 ** (distance - CENTRE_RADIUS)
    in_any = (_inside(points, targets.boxes) & targets.valid[..., None]).any(dim=1, keepdim=True)
    cost = torch.where(in_any, cost, OUTSIDE_COST)
    return cost.masked_fill(~targets.valid[..., None], float("inf"))


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """[N, G, M]: the cell's point lies strictly inside the box."""
    low = points - boxes[:, :, None, :2]
    high = boxes[:, :, None, 2:] - points
    return torch.minimum(low, high).min(dim=-1).values > 0


def _claims(cost: Tensor, ious: Tensor, valid: Tensor, topk: int) -> Tensor:
    """bool [N, G, M]: the k cheapest cells of every object."""
    most = min(topk, cost.shape[-1])
    k = ious.topk(most, dim=-1).values.sum(dim=-1).int().clamp(min=1)  # [N, G]
    cheapest = cost.topk(most, dim=-1, largest=False).indices  # [N, G, most]
    wanted = torch.arange(most, device=cost.device) < k[..., None]
    claimed = torch.zeros_like(cost, dtype=torch.bool).scatter(-1, cheapest, wanted)
    return claimed & valid[..., None]

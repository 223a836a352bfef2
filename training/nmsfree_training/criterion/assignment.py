"""Label assignment: which cells are responsible for which objects.

One-to-many and one-to-one are two instances of the same dynamic soft-label assigner (SimOTA's
dynamic k, arXiv:2107.08430): `topk` 13 and 1. The cost is that of RTMDet (arXiv:2212.07784), as
published, or the matching quality of POTO (arXiv:2012.03544).
Everything is batched: objects are padded to the largest count G of the batch, and every object
meets every cell in dense arrays [N, G, M]. Nothing depends on values in its shape, so the host
never waits for a GPU, except for a Hungarian matching, which it computes. Where N · G · M passes
`PAIRS_PER_BLOCK`, objects are taken in blocks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from nmsfree.datasets.sizes import LEAST
from nmsfree_training.config import Matching
from nmsfree_training.model.boxes import iou, pairwise_iou
from nmsfree_training.model.detector import Prediction

FORBIDDEN = 1e12  # of a cell that is not among an object's cheapest, and the highest price


def match(cells: Tensor, prices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Give every object one cell of its own at the least sum of prices.

    Among the G cheapest cells of each of G objects there is always an optimal matching: an object
    with a dearer cell could move to one of its G cheapest that none of the others holds.

    Where there are more objects than cells, every cell is used and the objects left over, those
    that make the sum least, get none.

    The prices are copied to the host: on a GPU the step waits for them once.

    Args:
        cells: int64 [N, G, k], each object's k ≥ min(G, count) cheapest cells.
        prices: float [N, G, k], their costs; infinite for an object that is not to be matched.
        count: number of all cells.

    Returns:
        int64 [N, count], the object of each cell, and bool [N, count], whether it has one.
    """
    owner = np.zeros((len(cells), count), np.int64)
    owned = np.zeros((len(cells), count), bool)
    pairs = zip(cells.numpy(force=True), prices.numpy(force=True), strict=True)
    for image, (own_cells, own_prices) in enumerate(pairs):
        objects = np.flatnonzero(np.isfinite(own_prices[:, 0]))
        if not len(objects):
            continue
        candidates, column = np.unique(own_cells[objects], return_inverse=True)
        cost = np.full((len(objects), len(candidates)), FORBIDDEN)
        # A far cell's price may be infinite, that of a diverged network's cell not a number.
        known = np.nan_to_num(own_prices[objects].astype(np.float64), nan=FORBIDDEN)
        column = column.reshape(len(objects), -1)
        np.put_along_axis(cost, column, known.clip(max=FORBIDDEN), axis=1)
        rows, columns = linear_sum_assignment(cost)
        owner[image, candidates[columns]] = objects[rows]
        owned[image, candidates[columns]] = True
    device = cells.device
    return torch.from_numpy(owner).to(device), torch.from_numpy(owned).to(device)


OUTSIDE_COST = 1e9  # of a cell whose point lies inside no object at all
IOU_COST_WEIGHT = 3.0
CENTRE_RADIUS = 3.0  # strides; the centre cost is 10^(distance / stride − 3)
MIN_SIDE = LEAST  # smaller objects are not assigned
# Of an object and a cell: 64 MiB a float32 array, of which five live at once. At batch 16 and
# 512 × 736 up to 135 objects in an image, more than any COCO image has, are one block.
PAIRS_PER_BLOCK = 1 << 24


@dataclass(frozen=True)
class Targets:
    """Objects of a batch, padded."""

    boxes: Tensor  # float32 [N, G, 4], xyxy in input pixels
    labels: Tensor  # int64 [N, G]
    valid: Tensor  # bool [N, G], False in the padding and for objects that are too small

    def to(self, device: torch.device) -> "Targets":
        return Targets(*(t.to(device, non_blocking=True) for t in vars(self).values()))


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
    """Per cell: its object, if any."""

    labels: Tensor  # int64 [N, M]; the number of classes C means background
    boxes: Tensor  # float32 [N, M, 4], xyxy of the assigned object; zeros for background
    metrics: Tensor  # float32 [N, M], IoU with the assigned object; zero for background


@dataclass(frozen=True)
class _Claims:
    """What a block of g objects wants: `cells` [N, g, k] where `wanted`; and per cell its cheapest.

    `prices` [N, g, k] are the costs of `cells`. `cost` and `cheapest` [N, M] are the least cost of
    a cell among the block's objects, and which of them it is.
    """

    cells: Tensor
    prices: Tensor
    wanted: Tensor
    cost: Tensor
    cheapest: Tensor


@torch.no_grad()
def assign(prediction: Prediction, targets: Targets, matching: Matching) -> Assignment:
    """Assign cells to objects, by the cost and number of cells of `matching`; all in float32."""
    logits, points = prediction.logits, prediction.points
    # A block makes at most `PAIRS_PER_BLOCK` pairs; usually there is one. What is not to be
    # assigned becomes a box without an inside, whatever it held.
    size = max(1, PAIRS_PER_BLOCK // max(1, len(targets.valid) * len(points)))
    real = targets.boxes.masked_fill(~targets.valid[..., None], 0.0)
    parts = (torch.split(t, size, dim=1) for t in (real, targets.labels, targets.valid))
    blocks = [Targets(*part) for part in zip(*parts, strict=True)]
    inside = None
    if matching.quality is None:
        inside = torch.stack([_inside(points, block).any(dim=1) for block in blocks]).any(dim=0)
    count = min(targets.valid.shape[1], len(points)) if matching.hungarian else 1
    claims = [_claim(prediction, block, inside, matching, count) for block in blocks]
    if matching.hungarian:
        owner, positive = match(
            torch.cat([c.cells for c in claims], dim=1),
            torch.cat([c.prices for c in claims], dim=1),
            len(points),
        )
    else:
        owner, positive = _owners(claims)
    labels = targets.labels.gather(1, owner).masked_fill(~positive, logits.shape[-1])
    index = owner[..., None].expand(-1, -1, 4)
    owner_boxes = targets.boxes.gather(1, index).masked_fill(~positive[..., None], 0.0)
    metrics = iou(owner_boxes, prediction.boxes).masked_fill(~positive, 0.0)
    return Assignment(labels, owner_boxes, metrics)


def _inside(points: Tensor, block: Targets) -> Tensor:
    """bool [N, g, M]: the cell's point lies strictly inside the object."""
    x, y = points.T.contiguous().unbind()  # [M]
    x1, y1, x2, y2 = block.boxes[..., None].unbind(dim=2)  # [N, g, 1]
    return (x > x1) & (x < x2) & (y > y1) & (y < y2)


def _claim(
    cells: Prediction, block: Targets, inside: Tensor | None, matching: Matching, count: int
) -> _Claims:
    """Every object claims its k cheapest cells; of at least `count` the costs are kept.

    `inside`, bool [N, M], is whether a cell's point lies in any object; the published cost asks.
    """
    ious = pairwise_iou(block.boxes, cells.boxes)  # [N, g, M]
    most = min(matching.topk, ious.shape[-1])
    k = ious.topk(most, dim=-1).values.sum(dim=-1).int().clamp(min=1)  # [N, g]
    image = torch.arange(len(cells.logits), device=cells.logits.device)[:, None]
    logits = cells.logits.transpose(1, 2)[image, block.labels]  # [N, g, M], of the object's class
    if matching.quality is None:
        assert inside is not None
        cost = _cost(cells, block, ious, logits).masked_fill_(~inside[:, None], OUTSIDE_COST)
    else:
        cost = _quality_cost(cells, block, ious, logits, *matching.quality)
    cost.masked_fill_(~block.valid[..., None], float("inf"))
    claimed = cost.topk(max(most, count), dim=-1, largest=False)  # [N, g, most]
    wanted = torch.arange(claimed.indices.shape[-1], device=cost.device) < k[..., None]
    least, cheapest = cost.min(dim=1)
    wanted &= block.valid[..., None]
    return _Claims(claimed.indices, claimed.values, wanted, least, cheapest)


def _cost(cells: Prediction, block: Targets, ious: Tensor, logits: Tensor) -> Tensor:
    """[N, g, M]: class cost + box cost + centre cost.

    Overwrites `ious` and `logits`, of the object's class: these arrays are large.
    """
    cost = F.binary_cross_entropy_with_logits(logits, ious, reduction="none")
    cost *= logits.sigmoid_().sub_(ious).square_()
    cost -= ious.add_(1e-8).log_().mul_(IOU_COST_WEIGHT)
    distance = _distance(cells, block, out=ious, scratch=logits)
    return cost.add_(torch.pow(10.0, distance.sub_(CENTRE_RADIUS), out=distance))


def _quality_cost(
    cells: Prediction,
    block: Targets,
    ious: Tensor,
    logits: Tensor,
    score_power: float,
    iou_power: float,
) -> Tensor:
    """[N, g, M]: −(p^score_power · IoU^iou_power) in the object, more by the distance outside it.

    POTO's quality has powers that sum to 1. Overwrites `ious` and `logits`.
    """
    quality = logits.sigmoid().pow_(score_power).mul_(ious.pow_(iou_power))
    distance = _distance(cells, block, out=ious, scratch=logits)
    return torch.where(_inside(cells.points, block), quality.neg_(), distance)


def _distance(cells: Prediction, block: Targets, out: Tensor, scratch: Tensor) -> Tensor:
    """[N, g, M]: from the cell's point to the object's centre, in strides; both are overwritten."""
    x, y = cells.points.T.contiguous().unbind()  # [M]
    x1, y1, x2, y2 = block.boxes[..., None].unbind(dim=2)  # [N, g, 1]
    distance = torch.sub(x, (x1 + x2) / 2, out=out).square_()
    distance += torch.sub(y, (y1 + y2) / 2, out=scratch).square_()
    return distance.sqrt_().div_(cells.strides)


def _owners(claims: list[_Claims]) -> tuple[Tensor, Tensor]:
    """Per cell its object, int64 [N, M], and whether any object claims it, bool [N, M]."""
    first = claims[0]
    cells = torch.cat([c.cells for c in claims], dim=1)  # [N, G, k]
    wanted = torch.cat([c.wanted for c in claims], dim=1)
    objects = torch.arange(cells.shape[1], device=cells.device)[:, None] * wanted
    none = torch.zeros_like(first.cheapest)
    count = none.scatter_add(1, cells.flatten(1), wanted.flatten(1).long())
    only = none.scatter_add(1, cells.flatten(1), objects.flatten(1))  # right where count is 1
    # A cell claimed by several goes to the cheapest of all objects for that cell.
    block = torch.stack([c.cost for c in claims]).argmin(dim=0, keepdim=True)
    size = first.cells.shape[1]
    cheapest = torch.stack([c.cheapest + i * size for i, c in enumerate(claims)])
    return torch.where(count > 1, cheapest.gather(0, block)[0], only), count > 0

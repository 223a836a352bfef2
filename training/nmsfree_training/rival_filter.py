"""A cell gives way to a better neighbour that shows the same box; it keeps its score beside others.

The max filters of `max_filter.py` compare scores alone, so of two objects of one class that stand
close they lower one. This one asks for the boxes, too: the logits z of a cell i become

    z_i − b · max over neighbours j of  tanh(50 · max(0, s_j − s_i)) · σ(40 · (IoU_ij − τ))

with s the best class logit of a cell and IoU that of the decoded boxes. Neighbours are the 8 cells
around it, the 4 × 4 cells of the next finer level around its centre (the 2 × 2 that it covers and a
ring around them), and the 2 × 2 cells of the next coarser level nearest to it, each kind with a
maximum and a strength b of its own per level. Every cell is compared with the unfiltered ones at
once: the cost is fixed, nothing is sorted, nothing depends on the picture. Only plain operators,
and positions relative to the cell in units of its stride.

The form is this project's. That neighbours in space and scale should compete is DeFCN's idea
(arXiv:2012.03544), that a score should fall with the overlap Soft-NMS's (arXiv:1704.04503).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmsfree_training.max_filter import Maps

MARGIN = 50.0  # a neighbour that is better by 0.02 in the logit counts by three quarters
SHARPNESS = 40.0  # an IoU 0.05 below τ counts by an eighth, 0.05 above it by seven
# Strengths end between 0.5 and 5; at the recipe's learning rate Adam moves a weight by a tenth.
GAIN = 10.0
FAR = -1e4  # of what lies outside the map: a low score, and a box far away

AROUND = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]  # in cells
# Finer cells around a coarse one, in finer cells from the first that it covers. Seen from below the
# same pairs are each finer cell and its four nearest coarse ones.
RING = (-1, 0, 1, 2)
BELOW = [(y, x) for y in RING for x in RING]


class _Boxes(NamedTuple):
    """What is compared of n cells, each of them at every place of a map.

    score, area [N, n, h, w]; low and high corners (y, x) [N, n, 2, h, w]; in strides, from the
    point of the cell at that place.
    """

    score: Tensor
    area: Tensor
    low: Tensor
    high: Tensor


class RivalFilter(nn.Module):
    """See above. No strength at the start: the filter then changes nothing.

    No gradient flows through the comparison, only into the strengths and the unfiltered logits.
    The comparison is in float32 whatever comes in, and so is what comes out.

    Args:
        levels: of the pyramid.
        agreement: τ, the IoU at which two boxes count by half as one.

    Attributes:
        weights: by kind of neighbour, float32 [levels]; the strengths b are `gain` times these.
    """

    around: Tensor
    below: Tensor

    def __init__(self, levels: int, agreement: float) -> None:
        super().__init__()
        self.agreement = agreement
        self.gain = GAIN
        self.weights = nn.ParameterDict(
            {kind: nn.Parameter(torch.zeros(levels)) for kind in ("same", "finer", "coarser")}
        )
        # Where the points of these neighbours are, in strides of the cell, [n, 2, 1, 1].
        around, below = torch.tensor(AROUND).float(), torch.tensor(BELOW) / 2 - 0.25
        self.register_buffer("around", around[..., None, None], persistent=False)
        self.register_buffer("below", below[..., None, None], persistent=False)

    def forward(self, logits: Maps, deltas: Maps) -> Maps:
        """Lower logits [N, C, h, w] where deltas [N, 4, h, w] agree; levels finest first."""
        cells = [
            _pack(x.detach().float(), d.detach().float())
            for x, d in zip(logits, deltas, strict=True)
        ]
        filtered = [
            x - self._strength("same", level) * self._from_around(own)
            for level, (x, own) in enumerate(zip(logits, cells, strict=True))
        ]
        for fine in range(len(cells) - 1):
            from_below, from_above = self._between(cells[fine], cells[fine + 1])
            filtered[fine] = filtered[fine] - self._strength("coarser", fine) * from_above
            coarse = fine + 1
            filtered[coarse] = filtered[coarse] - self._strength("finer", coarse) * from_below
        return filtered

    def folded(self) -> "RivalFilter":
        """Return a copy for deployment: the strengths are its weights."""
        copy = RivalFilter(len(self.weights["same"]), self.agreement)
        copy.gain = 1.0
        for kind, weight in self.weights.items():
            copy.weights[kind] = nn.Parameter(self.gain * weight.detach())
        return copy

    def _strength(self, kind: str, level: int) -> Tensor:
        weight: Tensor = self.weights[kind][level]
        return weight if self.gain == 1 else self.gain * weight

    def _from_around(self, cells: Tensor) -> Tensor:
        """How much each cell is rivalled by the 8 around it, [N, 1, h, w], 0–1."""
        h, w = cells.shape[2:]
        padded = F.pad(cells, (1, 1, 1, 1), value=FAR)
        rows = [padded[:, :, 1 + y : 1 + y + h] for y in (-1, 0, 1)]
        shifted = [rows[1 + y][:, :, :, 1 + x : 1 + x + w] for y, x in AROUND]
        own, others = _unpack([cells]), _moved(_unpack(shifted), self.around)
        return (_better(own, others) * self._agreement(own, others)).amax(dim=1, keepdim=True)

    def _between(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Rivalry of two levels: of each coarse cell by its finer ones, and the other way round."""
        h, w = fine.shape[2:]
        rows, columns = coarse.shape[2:]
        # A ring around it. An odd side: the last coarse cell covers one finer cell less.
        ringed = F.pad(fine, (1, 2 * columns - w + 1, 1, 2 * rows - h + 1), value=FAR)
        by_row = {y: ringed[:, :, 1 + y : 1 + y + 2 * rows - 1 : 2] for y in RING}
        parts = _unpack([by_row[y][..., 1 + x : 1 + x + 2 * columns - 1 : 2] for y, x in BELOW])
        halved = _Boxes(parts.score, parts.area / 4, parts.low / 2, parts.high / 2)
        own, others = _unpack([coarse]), _moved(halved, self.below)
        agreement = self._agreement(own, others)  # [N, 16, rows, columns]
        from_below = (_better(own, others) * agreement).amax(dim=1, keepdim=True)
        from_above = _seen_from_below(_better(others, own) * agreement)
        return from_below, from_above[:, :, :h, :w]

    def _agreement(self, a: _Boxes, b: _Boxes) -> Tensor:
        """0–1: whether boxes are the same."""
        sides = (torch.minimum(a.high, b.high) - torch.maximum(a.low, b.low)).clamp(min=0)
        shared = sides[:, :, 0] * sides[:, :, 1]
        iou = shared / (a.area + b.area - shared).clamp(min=1e-6)  # square strides
        return torch.sigmoid(SHARPNESS * (iou - self.agreement))


def _pack(logits: Tensor, deltas: Tensor) -> Tensor:
    """[N, 6, h, w]: best logit, and the box's area, low corner and high corner in strides."""
    centre, half = deltas[:, :2].flip(1), deltas[:, 2:].flip(1).exp() / 2  # (y, x)
    score, area = logits.amax(dim=1, keepdim=True), 4 * half[:, :1] * half[:, 1:]
    return torch.cat([score, area, centre - half, centre + half], dim=1)


def _unpack(cells: list[Tensor]) -> _Boxes:
    joined = torch.cat(cells, dim=1)
    joined = joined.reshape(-1, len(cells), 6, *joined.shape[2:])
    return _Boxes(joined[:, :, 0], joined[:, :, 1], joined[:, :, 2:4], joined[:, :, 4:])


def _moved(boxes: _Boxes, offsets: Tensor) -> _Boxes:
    """Boxes as seen from a cell whose neighbours lie at these offsets, [n, 2, 1, 1]."""
    return boxes._replace(low=boxes.low + offsets, high=boxes.high + offsets)


def _better(own: _Boxes, others: _Boxes) -> Tensor:
    """0–1: whether others have a higher score."""
    return torch.tanh(MARGIN * (others.score - own.score).clamp(min=0))


def _seen_from_below(rates: Tensor) -> Tensor:
    """Largest rate of each finer cell, [N, 1, 2h, 2w], from those of the pairs, [N, 16, h, w].

    A finer cell in the first half of a coarse one is nearest to that and to the one before it,
    which counts it as the last of its four; one in the second half to the next, as its first.
    """
    h, w = rates.shape[2:]
    ringed = F.pad(rates, (1, 1, 1, 1))  # no coarse cell, no rival
    nearest = (((1, 0), (3, -1)), ((2, 0), (0, 1)))  # by half: (place in RING, coarse cells away)
    quarters = []
    for by_row in nearest:
        for by_column in nearest:
            seen = [
                ringed[:, 4 * i + j, 1 + y : 1 + y + h, 1 + x : 1 + x + w]
                for i, y in by_row
                for j, x in by_column
            ]
            quarters.append(torch.stack(seen, dim=1).amax(dim=1))
    return F.pixel_shuffle(torch.stack(quarters, dim=1), 2)

"""A cell gives way to a better neighbour that shows the same box; it keeps its score beside others.

The max filters below compare scores alone, so of two objects of one class that stand
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

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Maps = list[Tensor]  # one [N, C, h, w] per level, finest first
Shapes = Sequence[Sequence[int]]  # (h, w) of every level


def neighbour_maxima(maps: Maps) -> list[dict[str, Tensor]]:
    """Per level the maxima around each cell: of its 3×3 cells ("same"), of the 4×4 cells of the
    next finer level around it ("finer"), and of the cell of the next coarser level that it lies
    in ("coarser"). The first level has no finer, the last no coarser one."""
    found: list[dict[str, Tensor]] = []
    for level, x in enumerate(maps):
        around = {"same": F.max_pool2d(x, 3, stride=1, padding=1)}
        if level > 0:
            around["finer"] = F.max_pool2d(maps[level - 1], 4, stride=2, padding=1, ceil_mode=True)
        if level + 1 < len(maps):
            around["coarser"] = F.interpolate(maps[level + 1], size=x.shape[2:], mode="nearest")
        found.append(around)
    return found


class LogitFilter(nn.Module):
    """z = l + Σ w·min(l − max, 0): a class logit is lowered where a neighbour's is higher.

    One weight per level and kind of neighbour, 0 at the start: the filter then changes nothing.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({kind: nn.Parameter(torch.zeros(levels)) for kind in KINDS})

    def forward(self, maps: Maps) -> Maps:
        filtered = []
        for level, (x, around) in enumerate(zip(maps, neighbour_maxima(maps), strict=True)):
            z = x
            for kind, maximum in around.items():
                z = z + self.weights[kind][level] * (x - maximum).clamp(max=0)
            filtered.append(z)
        return filtered


class FeatureFilter(nn.Module):
    """y = x + W·(x − max) on the features of the class branch; W a 1×1 convolution, 0 at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        for parameter in self.mix.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Maps) -> Maps:
        out = []
        for x, around in zip(maps, neighbour_maxima(maps), strict=True):
            out.append(x + self.mix(x - reduce(torch.maximum, around.values())))
        return out


MARGIN = 50.0  # a neighbour that is better by 0.02 in the logit counts by three quarters
SHARPNESS = 40.0  # an IoU 0.05 below τ counts by an eighth, 0.05 above it by seven
# Strengths end between 0.5 and 5; at the recipe's learning rate Adam moves a weight by a tenth.
GAIN = 10.0
FAR = -1e4  # of what lies outside a level: a low score, and a point far away
KINDS = ("same", "coarser", "finer")  # of neighbours

# Neighbours by (y, x). Around a cell: four of the eight, since a pair is looked at once.
AROUND = ((0, 1), (1, -1), (1, 0), (1, 1))
# A cell's four nearest of the next coarser level are those that its diagonal neighbours lie in.
# Seen from above the same pairs are 4 × 4 around a coarse cell.
ABOVE = ((-1, -1), (-1, 1), (1, -1), (1, 1))


class Tables(NamedTuple):
    """What cells are compared with, for levels of certain sizes, float32. Corners as of `_pack`."""

    doubling: Tensor  # [6, 1, 1], of cells: from strides of a level into those of the finer one
    shifts: Tensor  # [4, 2, 4, 1], to the corners of neighbours: around a cell, above it
    # [4, 1, rows · columns], to a cell's corners: from its point to that which it shares with three
    # others, from which its diagonal neighbours' coarse cells are whole steps away.
    halves: Tensor
    strengths: Tensor  # [3, 1, columns], of `KINDS`


class DuplicateFilter(nn.Module):
    """See above. No strength at the start: the filter then changes nothing.

    No gradient flows through the comparison, only into the strengths and the unfiltered logits.
    The comparison is in float32 whatever comes in, and so is what comes out.

    Every pair of neighbours is compared once, for both of them, and all pairs at once. For this the
    levels lie side by side, each with half the columns of the one before, so that the coarser ones,
    every cell doubled, lie over the finer ones:

        level 0            level 1    level 2  padding
        level 1 doubled    2 doubled  padding  padding

    Rows of cells lie behind each other in memory, so that the neighbours of all cells at one offset
    are one slice.

    Args:
        levels: of the pyramid.
        agreement: τ, the IoU at which two boxes count by half as one, while the network is trained.
        deployed: τ in evaluation mode; None takes the same.

    Attributes:
        weights: by kind of neighbour, float32 [levels]; the strengths b are GAIN times these.
    """

    doubling: Tensor
    shifts: Tensor

    def __init__(self, levels: int, agreement: float, deployed: float | None = None) -> None:
        super().__init__()
        self.agreement = agreement
        self.deployed = agreement if deployed is None else deployed
        self.weights = nn.ParameterDict({kind: nn.Parameter(torch.zeros(levels)) for kind in KINDS})
        doubling = torch.tensor([2.0, 2, 2, 2, 4, 1])[:, None, None]
        steps = torch.tensor([AROUND, ABOVE]).float().permute(2, 0, 1).flip(0)  # (x, y) first
        shifts = torch.cat([steps, -steps])[..., None]
        self.register_buffer("doubling", doubling, persistent=False)
        self.register_buffer("shifts", shifts, persistent=False)

    def forward(self, logits: Maps, deltas: Maps) -> Maps:
        """Lower logits [N, C, h, w] where deltas [N, 4, h, w] agree; levels finest first."""
        tau = self.agreement if self.training else self.deployed
        return _filtered(logits, deltas, tau, self.tables([x.shape[2:] for x in logits]))

    def tables(self, shapes: Shapes) -> Tables:
        """For levels of these (h, w)."""
        widths, height = _layout(shapes)
        sides = (torch.arange(n, device=self.shifts.device) for n in (2 * widths[0], height))
        halves = 0.5 - torch.stack(torch.meshgrid(*sides, indexing="xy")).float() % 2
        strengths = GAIN * torch.stack([self.weights[kind] for kind in KINDS])
        parts = [b[:, None].expand(-1, n) for b, n in zip(strengths.unbind(1), widths, strict=True)]
        strengths = F.pad(torch.cat(parts, dim=1), (0, widths[-1]))[:, None]
        halves = torch.cat([halves, -halves]).flatten(1)[:, None]
        return Tables(self.doubling, self.shifts, halves, strengths)

    def start(self, strength: float) -> None:
        """Begin with this b for all kinds of neighbours and levels."""
        for weight in self.weights.values():
            nn.init.constant_(weight, strength / GAIN)


class FoldedFilter(nn.Module):
    """A `DuplicateFilter` for deployment, whose levels have these (h, w)."""

    def __init__(self, own: DuplicateFilter, shapes: Shapes) -> None:
        super().__init__()
        self.agreement = own.deployed
        for name, table in own.tables(shapes)._asdict().items():
            self.register_buffer(name, table.detach())

    def forward(self, logits: Maps, deltas: Maps) -> Maps:
        """As that of `DuplicateFilter` in evaluation mode."""
        tables = Tables(*(self.get_buffer(name) for name in Tables._fields))
        return _filtered(logits, deltas, self.agreement, tables)


def _layout(shapes: Shapes) -> tuple[list[int], int]:
    """Columns of each level, at least one of padding behind its cells, and rows of the first one.

    Their number is even; above are one of padding, below two.
    """
    last, first = shapes[-1][1], shapes[0][0]
    return [(last + 1) << n for n in reversed(range(len(shapes)))], first + first % 2


def _filtered(logits: Maps, deltas: Maps, tau: float, tables: Tables) -> Maps:
    widths, height = _layout([x.shape[2:] for x in logits])
    start, row = widths[0], 2 * widths[0]
    size = height * row
    cells = _pack(logits, deltas, widths, height)
    # Four copies of each coarse cell.
    coarse = cells[:, :, : height // 2 + 2, start:] * tables.doubling
    doubled = F.interpolate(coarse, scale_factor=2, mode="nearest")
    near, above = (x.flatten(2)[:, :, None] for x in (cells, doubled))
    steps = [y * row + x for y, x in (*AROUND, *ABOVE)]
    parts = [near.narrow(3, row + s, size) for s in steps[: len(AROUND)]]
    parts += [above.narrow(3, 2 * row + s, size) for s in steps[len(AROUND) :]]
    rates = _rates(near.narrow(3, row, size), torch.cat(parts, dim=2), tau, tables)
    # The others are lowered by these, at their own places.
    padded = F.pad(rates, (row + 1, row + 1)).chunk(len(steps), dim=2)
    parts = [one.narrow(3, row + 1 - s, size) for s, one in zip(steps, padded, strict=True)]
    back = torch.cat(parts, dim=2).neg()
    (around, coarser), (also, finer) = (
        x.reshape(-1, 2, len(AROUND), size).amax(dim=2).chunk(2, dim=1) for x in (rates, back)
    )
    finer = F.max_pool2d(finer.reshape(-1, 1, height, row), 2)
    finer = F.pad(finer, (start, 0, 0, height // 2)).flatten(2)
    kinds = torch.cat([torch.maximum(around, also), coarser, finer], dim=1).clamp(min=0)
    lowering = (kinds.reshape(-1, 3, height, row) * tables.strengths).sum(dim=1, keepdim=True)
    return [
        x - lowering[:, :, : x.shape[2]].narrow(3, 2 * (start - width), x.shape[3])
        for x, width in zip(logits, widths, strict=True)
    ]


def _pack(logits: Maps, deltas: Maps, widths: list[int], height: int) -> Tensor:
    """[N, 6, rows, columns], all levels: a box's high corner and its low one negated, (x, y); its
    area; best logit times `MARGIN`.

    In strides, from the cell's point. Of two boxes that meet, the smaller of these are the corners
    of what they share.
    """
    levels = [
        F.pad(
            torch.cat([d.detach(), x.detach().amax(dim=1, keepdim=True)], dim=1).float(),
            (0, width - x.shape[3], 1, height + 2 - x.shape[2]),
            value=FAR,
        )
        for x, d, width in zip(logits, deltas, [*widths[:-1], 2 * widths[-1]], strict=True)
    ]
    offset, size, score = torch.cat(levels, dim=3).split_with_sizes([2, 2, 1], dim=1)
    size = size.exp()
    area, half = (size[:, :1] * size[:, 1:]).clamp(min=1e-6), size / 2
    return torch.cat([half + offset, half - offset, area, MARGIN * score], dim=1)


def _rates(own: Tensor, others: Tensor, tau: float, tables: Tables) -> Tensor:
    """How much others [N, 6, 8, L] lower cells [N, 6, 1, L], 0–1; below 0, are lowered by them.

    Returns float32 [N, 1, 8, L].
    """
    corners, area, score = own.split_with_sizes([4, 1, 1], dim=1)
    other_corners, other_area, other_score = others.split_with_sizes([4, 1, 1], dim=1)
    corners = torch.stack([corners, corners + tables.halves], dim=2)
    other_corners = other_corners.reshape(-1, 4, 2, len(AROUND), own.shape[3]) + tables.shifts
    high, low = torch.minimum(corners, other_corners).flatten(2, 3).chunk(2, dim=1)
    width, height = (high + low).clamp(min=0).chunk(2, dim=1)
    shared = width * height
    iou = shared / (area + other_area - shared)  # strides are square
    return torch.tanh(other_score - score) * torch.sigmoid(SHARPNESS * (iou - tau))

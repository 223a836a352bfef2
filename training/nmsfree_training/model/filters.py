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

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Maps = list[Tensor]  # one [N, C, h, w] per level, finest first


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
        self.weights = nn.ParameterDict(
            {k: nn.Parameter(torch.zeros(levels)) for k in ("same", "finer", "coarser")}
        )

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
FAR = -1e4  # of what lies outside the map: a low score, and a box inside out

# Neighbours by (y, x). Around a cell, in cells: four of the eight, since a pair is looked at once.
AROUND = ((0, 1), (1, -1), (1, 0), (1, 1))
# Of the next coarser level, in cells of this one: a cell's four nearest coarse ones are those that
# its diagonal neighbours lie in. Seen from above the same pairs are 4 × 4 around a coarse cell.
ABOVE = ((-1, -1), (-1, 1), (1, -1), (1, 1))
CENTRE = (0.5, -0.5)  # of a coarse cell, from the points of the finer ones in its two halves


class DuplicateFilter(nn.Module):
    """See above. No strength at the start: the filter then changes nothing.

    No gradient flows through the comparison, only into the strengths and the unfiltered logits.
    The comparison is in float32 whatever comes in, and so is what comes out.

    Every pair of neighbours is compared once, for both of them. Rows of cells lie behind each
    other, so that the neighbours of all cells at one offset are one slice of memory.

    Args:
        levels: of the pyramid.
        agreement: τ, the IoU at which two boxes count by half as one, while the network is trained.
        deployed: τ in evaluation mode; None takes the same.

    Attributes:
        weights: by kind of neighbour, float32 [levels]; the strengths b are `gain` times these.
    """

    around: Tensor
    above: Tensor
    doubling: Tensor
    centres: Tensor

    def __init__(self, levels: int, agreement: float, deployed: float | None = None) -> None:
        super().__init__()
        self.agreement = agreement
        self.deployed = agreement if deployed is None else deployed
        self.gain = GAIN
        self.weights = nn.ParameterDict(
            {kind: nn.Parameter(torch.zeros(levels)) for kind in ("same", "finer", "coarser")}
        )
        self.register_buffer("around", _shift(torch.tensor(AROUND).float()), persistent=False)
        self.register_buffer("above", _shift(torch.tensor(ABOVE).float()), persistent=False)
        # From strides of the coarse level into those of the finer one, and by quarter of the cell.
        doubling = torch.tensor([2.0, 2, 2, 2, 4, 1])[:, None, None]
        quarters = _shift(torch.tensor([(y, x) for y in CENTRE for x in CENTRE]))
        centres = F.pad(quarters, (0, 0, 0, 0, 0, 2))[..., None]  # area and score do not move
        self.register_buffer("doubling", doubling, persistent=False)
        self.register_buffer("centres", centres, persistent=False)

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

    def start(self, strength: float) -> None:
        """Begin with this b for all kinds of neighbours and levels."""
        for weight in self.weights.values():
            nn.init.constant_(weight, strength / self.gain)

    def folded(self) -> "DuplicateFilter":
        """Return a copy for deployment: the strengths are its weights."""
        copy = DuplicateFilter(len(self.weights["same"]), self.agreement, self.deployed)
        copy.gain = 1.0
        for kind, weight in self.weights.items():
            copy.weights[kind] = nn.Parameter(self.gain * weight.detach())
        return copy.train(self.training)

    def _strength(self, kind: str, level: int) -> Tensor:
        weight: Tensor = self.weights[kind][level]
        return weight if self.gain == 1 else self.gain * weight

    def _from_around(self, cells: Tensor) -> Tensor:
        """How much each cell [N, 6, h, w] is lowered by the 8 around it, [N, 1, h, w], 0–1."""
        h, w = cells.shape[2:]
        row = w + 1  # one column of padding: beside the last cell, and before the next row's first
        steps = [y * row + x for y, x in AROUND]
        flat = F.pad(cells, (0, 1, 0, 2), value=FAR).flatten(2)[:, :, None]
        others = torch.cat([flat[..., s : s + h * row] for s in steps], dim=2)
        first, second = self._rates(flat[..., : h * row], others, self.around)
        largest = torch.cat([first, *_stepped(second, steps, row + 1, h * row)], dim=2).amax(dim=2)
        return largest.reshape(-1, 1, h, row)[..., :w]

    def _between(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Lowering of each coarse cell by its finer ones, and the other way round."""
        (h, w), (rows, columns) = fine.shape[2:], coarse.shape[2:]
        # A copy of the coarse cell for each finer one, as seen from there: one more at an odd side.
        copies = (coarse * self.doubling)[:, :, None] + self.centres
        spread = F.pixel_shuffle(copies.reshape(-1, 24, rows, columns), 2)
        row, size = w + 2, h * (w + 2)
        around = (1, w + 1 - 2 * columns, 1, h + 2 - 2 * rows)
        flat = F.pad(spread, around, value=FAR).flatten(2)[:, :, None]
        steps = [y * row + x for y, x in ABOVE]
        parts = [flat[..., row + 1 + s : row + 1 + s + size] for s in steps]
        own = F.pad(fine, (0, 2), value=FAR).flatten(2)[:, :, None]
        first, second = self._rates(own, torch.cat(parts, dim=2), self.above)
        from_above = first.amax(dim=2).reshape(-1, 1, h, row)[..., :w]
        # At the place of the diagonal neighbour it lies in its coarse cell.
        moved = torch.cat(_stepped(second, steps, row + 1, 2 * rows * row), dim=2).amax(dim=2)
        by_fine = moved.reshape(-1, 1, 2 * rows, row)[..., : 2 * columns]
        return F.max_pool2d(by_fine, 2), from_above

    def _rates(self, own: Tensor, others: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """How much cells [N, 6, 1, L] are lowered by others [N, 6, n, L], and these by them.

        `shift` [4, n, 1] leads from the points of the cells to those of the others. Returns float32
        [N, 1, n, L] twice, 0–1.
        """
        corners, area, score = own.split_with_sizes([4, 1, 1], dim=1)
        other_corners, other_area, other_score = others.split_with_sizes([4, 1, 1], dim=1)
        high, low = torch.minimum(corners, other_corners + shift).chunk(2, dim=1)
        height, width = (high + low).clamp(min=0).chunk(2, dim=1)
        shared = height * width
        iou = shared / (area + other_area - shared).clamp(min=1e-6)  # square strides
        tau = self.agreement if self.training else self.deployed
        agreement = torch.sigmoid(SHARPNESS * (iou - tau))
        better = torch.tanh(MARGIN * (other_score - score))
        return better.clamp(min=0) * agreement, (-better).clamp(min=0) * agreement


def _pack(logits: Tensor, deltas: Tensor) -> Tensor:
    """[N, 6, h, w]: a box's high corner and its low one negated, (y, x); its area; best logit.

    In strides, from the cell's point. Of two boxes that meet, the smaller of these are the corners
    of what they share.
    """
    centre, half = deltas[:, :2].flip(1), deltas[:, 2:].flip(1).exp() / 2  # (y, x)
    area, score = 4 * half[:, :1] * half[:, 1:], logits.amax(dim=1, keepdim=True)
    return torch.cat([half + centre, half - centre, area, score], dim=1)


def _shift(offsets: Tensor) -> Tensor:
    """Offsets of points [n, 2], in strides → what is added to corners as `_pack` has them."""
    return torch.cat([offsets, -offsets], dim=1).T[..., None]


def _stepped(rates: Tensor, steps: list[int], most: int, size: int) -> list[Tensor]:
    """Rates of cells so many steps further, at the places of those; 0 comes from outside.

    [N, 1, n, L] for n steps of at most `most` → n × [N, 1, 1, size]; size is L or more.
    """
    padded = F.pad(rates, (most, most + size - rates.shape[3])).chunk(len(steps), dim=2)
    return [one[..., most - s : most - s + size] for one, s in zip(padded, steps, strict=True)]

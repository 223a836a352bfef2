"""What a cell's neighbours say: a maximum over space and neighbouring levels (3-D max filter).

Two cells that see one object look alike to a convolution, and a one-to-one head must call one of
them background. A maximum over the neighbourhood tells each whether it is the better one. The idea
of comparing within space and scale is DeFCN's (arXiv:2012.03544); this form, the distance to the
neighbourhood's maximum as a linear term, is this project's. Max pooling and nearest resize only:
plain operators in every engine.
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

"""The deployed graph: normalise → network with one head → top-k → decode. Exists for export only.

The trained network never asks whether it is being exported; this module is built around a copy.

Lower precisions are other graphs, made from this one in float32: see `half.py`, `quantize.py`.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nmsfree.spec import ModelSpec
from nmsfree_training.config import STRIDES
from nmsfree_training.model.backbones import Backbone
from nmsfree_training.model.boxes import anchor_points, decode
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.filters import FoldedFilter, Shapes
from nmsfree_training.model.head import Head, LevelBatchNorm2d
from nmsfree_training.model.norms import MEAN_RGB, STD_RGB, FrozenBatchNorm2d


def folded_conv(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Return a convolution with bias that equals `conv` followed by `norm` in evaluation mode."""
    assert isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    scale = norm.weight.double() / (var.double() + norm.eps).sqrt()
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).float())
    start = torch.zeros_like(mean) if conv.bias is None else conv.bias
    shift = norm.bias.double() + (start.double() - mean.double()) * scale
    folded.bias = nn.Parameter(shift.float())
    return folded


def fold_backbone(backbone: Backbone) -> Backbone:
    """Return a copy without batch norm."""
    backbone = copy.deepcopy(backbone)
    for module in backbone.modules():
        for number in (1, 2, 3):
            conv = getattr(module, f"conv{number}", None)
            norm = getattr(module, f"bn{number}", None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.Module):
                setattr(module, f"conv{number}", folded_conv(conv, norm))
                setattr(module, f"bn{number}", nn.Identity())
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, nn.Sequential):
            assert isinstance(shortcut[0], nn.Conv2d)
            module.downsample = folded_conv(shortcut[0], shortcut[1])
    return backbone


def fold_head(head: Head, shapes: Shapes) -> list[Head]:
    """Return one head per level, without batch norm; the same object where nothing differs.

    Levels have the `shapes` (h, w).

    Predictions and filters are those of the original in every one of them: `Head.predict` of
    any makes the outputs of all levels from what `Head.towers` of each gives for its own.
    """
    # None of these carries a norm: all levels share one copy, so that it is stored once.
    names = ("cls_pred", "reg_pred", "feature_filter", "logit_filter")
    shared = {name: copy.deepcopy(getattr(head, name)) for name in names}
    shared["duplicate_filter"] = (
        None if head.duplicate_filter is None else FoldedFilter(head.duplicate_filter, shapes)
    )
    per_level = isinstance(head.cls_heads[0].norm, LevelBatchNorm2d)
    levels = []
    for level in range(len(STRIDES) if per_level else 1):
        folded = copy.deepcopy(head)
        for block in [*folded.cls_heads, *folded.reg_heads]:
            norm = block.norm[level] if isinstance(block.norm, LevelBatchNorm2d) else block.norm
            if not isinstance(norm, nn.GroupNorm):
                block.conv = folded_conv(block.conv, norm)
                block.norm = nn.Identity()
        for name, module in shared.items():
            setattr(folded, name, module)
        levels.append(folded)
    return levels if per_level else levels * len(STRIDES)


@dataclass(frozen=True)
class Maps:
    """Raw outputs of all levels: logits float [N, C, M], deltas float [N, 4, M]."""

    logits: Tensor
    deltas: Tensor
    sizes: tuple[int, ...]


class DeployNetwork(nn.Module):
    """uint8 BGR images → raw maps of the one head that is kept.

    Colour order costs nothing: the first convolution's input channels are reversed instead of
    the image's, and mean and deviation are stored in BGR order.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: Fcos, head: str, shapes: Shapes) -> None:
        super().__init__()
        self.backbone = fold_backbone(network.backbone)
        weight = self.backbone.conv1.weight.detach().flip(1).contiguous()
        self.backbone.conv1.weight = nn.Parameter(weight)
        self.fpn = copy.deepcopy(network.fpn)
        self.heads = nn.ModuleList(fold_head(network.heads[head], shapes))  # type: ignore[arg-type]
        mean = 255 * torch.tensor(MEAN_RGB[::-1])[:, None, None]
        deviation = 255 * torch.tensor(STD_RGB[::-1])[:, None, None]
        self.register_buffer("mean", mean)
        self.register_buffer("scale", 1 / deviation)

    def forward(self, images: Tensor) -> Maps:
        # Cast before the transpose: TensorRT-RTX refuses to transpose uint8.
        x = images.float().permute(0, 3, 1, 2)
        features = self.fpn(self.backbone((x - self.mean) * self.scale))
        heads: list[Head] = [*self.heads]
        # Level by level as far as norms may differ; a max filter after that compares levels.
        towers = [head.towers([f]) for head, f in zip(heads, features, strict=True)]
        cls, reg = ([tower[i][0] for tower in towers] for i in (0, 1))
        levels = heads[0].predict(cls, reg)
        logits, deltas = (torch.cat([m[i].flatten(2) for m in levels], dim=2) for i in (0, 1))
        return Maps(logits, deltas, tuple(m[0].shape[2] * m[0].shape[3] for m in levels))


def top_pairs(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The exact best k (cell, class) pairs, without sorting all of them.

    A pair among the best k lies in a cell whose best class is among the best k cells: so first k
    cells by their best class, then k pairs of those cells. Logits float [N, C, M] → logits float
    [N, k] descending, cells int64 [N, k], classes int64 [N, k].
    """
    num_classes = logits.shape[1]
    cells = logits.amax(dim=1).topk(k).indices  # [N, k]
    kept = logits.gather(2, cells[:, None].expand(-1, num_classes, -1))  # [N, C, k]
    best, index = kept.flatten(1).topk(k)
    # index // k by way of float32, exact below 2^24; integer division exports as ten operators.
    assert num_classes * k < 2**24
    classes = (index.float() / k).floor().long()
    return best, cells.gather(1, index - classes * k), classes


class _Deployed(nn.Module):
    """What both heads' graphs share: the network and the table of cells."""

    cells: Tensor

    def __init__(self, network: Fcos, spec: ModelSpec) -> None:
        super().__init__()
        shapes = [(-(-spec.height // s), -(-spec.width // s)) for s in STRIDES]
        self.network = DeployNetwork(network, spec.head, shapes)
        points, strides = anchor_points(shapes, STRIDES)
        self.register_buffer("cells", torch.cat([points, strides[:, None]], dim=1))  # x, y, stride

    def _boxes(self, deltas: Tensor, cells: Tensor) -> Tensor:
        """Decode chosen cells only: deltas [N, 4, M], cells [N, k] → xyxy [N, k, 4] pixels."""
        own = deltas.gather(2, cells[:, None].expand(-1, 4, -1)).transpose(1, 2)
        table = functional.embedding(cells, self.cells)  # [N, k, 3]
        return decode(own, table[..., :2], table[..., 2])


class NmsFreeModule(_Deployed):
    """The whole NMS-free model; outputs as in `nmsfree.backends.base.RawDetections`."""

    limit: Tensor

    def __init__(self, network: Fcos, spec: ModelSpec) -> None:
        super().__init__(network, spec)
        self.k, self.floor = min(spec.top_k, len(self.cells)), spec.score_floor
        limit = torch.tensor([spec.width, spec.height] * 2, dtype=torch.float32)
        self.register_buffer("limit", limit)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        maps = self.network(images)
        best, cells, classes = top_pairs(maps.logits, self.k)
        boxes = torch.minimum(self._boxes(maps.deltas, cells).clamp(min=0), self.limit)
        scores = best.sigmoid()
        count = (scores > self.floor).sum(dim=1, keepdim=True).int()
        return count, boxes, scores, classes.int()


class CandidatesModule(_Deployed):
    """The o2m model up to its NMS, which `append_nms` adds to the exported graph.

    Outputs: boxes float [N, T, 4] (xyxy pixels, not clipped), scores float [N, T], classes int64
    [N, T]: per level the best min(candidates_per_level, cells) pairs, levels concatenated.
    """

    def __init__(self, network: Fcos, spec: ModelSpec) -> None:
        super().__init__(network, spec)
        assert spec.nms is not None
        self.per_level = spec.nms.candidates_per_level

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.network(images)
        scores, cells, classes = [], [], []
        start = 0
        for size, logits in zip(maps.sizes, maps.logits.split(maps.sizes, dim=2), strict=True):
            best, cell, label = top_pairs(logits, min(self.per_level, size))
            scores.append(best.sigmoid())
            cells.append(cell + start)
            classes.append(label)
            start += size
        boxes = self._boxes(maps.deltas, torch.cat(cells, dim=1))
        return boxes, torch.cat(scores, dim=1), torch.cat(classes, dim=1)

"""The dense head: class logits and box deltas for every cell of every level."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmsfree_training.config import GROUPS, STRIDES, HeadNorm, ModelConfig
from nmsfree_training.model.filters import DuplicateFilter, FeatureFilter, LogitFilter, Maps


class LevelBatchNorm2d(nn.ModuleList):
    """One batch norm per level: their statistics differ, the convolution before is shared."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels) for _ in range(levels))


class ConvNorm(nn.Module):
    """3×3 convolution without bias, norm, ReLU, on every level with the same weights."""

    def __init__(self, channels: int, norm: HeadNorm, levels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm: nn.Module
        match norm:
            case "group":
                self.norm = nn.GroupNorm(GROUPS, channels)
            case "batch":
                self.norm = nn.BatchNorm2d(channels)
            case "batch_per_level":
                self.norm = LevelBatchNorm2d(channels, levels)

    def forward(self, maps: Maps) -> Maps:
        maps = [self.conv(x) for x in maps]
        if isinstance(self.norm, LevelBatchNorm2d):
            maps = [norm(x) for norm, x in zip(self.norm, maps, strict=True)]
        elif isinstance(self.norm, nn.BatchNorm2d) and self.training:
            maps = _joint(self.norm, maps)
        else:
            maps = [self.norm(x) for x in maps]
        return [F.relu(x) for x in maps]


def _joint(norm: nn.Module, maps: Maps) -> Maps:
    """Normalise all levels with the statistics of all levels, as evaluation will."""
    sizes = [x.shape[2] * x.shape[3] for x in maps]
    joined = norm(torch.cat([x.flatten(2) for x in maps], dim=2)[..., None])
    parts = joined[..., 0].split(sizes, dim=2)
    return [part.reshape(x.shape) for part, x in zip(parts, maps, strict=True)]


class Head(nn.Module):
    """Two branches of convolutions, one for classes and one for boxes.

    The same weights serve all levels. Initial values: normal(0, 0.01) for convolutions, zero
    biases, class bias −log(99), that is a probability of 0.01 everywhere.
    """

    def __init__(self, config: ModelConfig, has_filters: bool) -> None:
        super().__init__()
        channels, norm, levels = config.channels, config.head_norm, len(STRIDES)
        self.cls_heads, self.reg_heads = (
            nn.ModuleList(ConvNorm(channels, norm, levels) for _ in range(config.head_convs))
            for _ in range(2)
        )
        self.cls_pred = nn.Conv2d(channels, config.num_classes, 3, padding=1)
        self.reg_pred = nn.Conv2d(channels, 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.cls_pred.bias is not None
        nn.init.constant_(self.cls_pred.bias, -math.log(99))
        kind, tau = config.max_filter, config.dedup_iou
        if not has_filters:
            kind, tau = "none", 0.0
        self.feature_filter = FeatureFilter(channels) if kind == "features" else None
        self.logit_filter = LogitFilter(levels) if kind == "logits" else None
        deployed = config.deployed_dedup_iou or tau
        self.duplicate_filter = DuplicateFilter(levels, tau, deployed) if tau else None

    def forward(self, features: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
        """P3 … P5 → per level (logits [N, C, h, w], deltas [N, 4, h, w] as dx, dy, dw, dh)."""
        return self.predict(*self.towers(list(features)))

    def towers(self, maps: Maps) -> tuple[Maps, Maps]:
        """Features of any levels, each for itself → those of the class and of the box branch."""
        cls = reg = maps
        for block in self.cls_heads:
            cls = block(cls)
        for block in self.reg_heads:
            reg = block(reg)
        return cls, reg

    def predict(self, cls: Maps, reg: Maps) -> list[tuple[Tensor, Tensor]]:
        """Both branches' features of all levels → as `forward`; filters compare levels."""
        if self.feature_filter is not None:
            cls = self.feature_filter(cls)
        logits = [self.cls_pred(c) for c in cls]
        if self.logit_filter is not None:
            logits = self.logit_filter(logits)
        deltas = [self.reg_pred(r) for r in reg]
        if self.duplicate_filter is not None:
            logits = self.duplicate_filter(logits, deltas)
        return list(zip(logits, deltas, strict=True))

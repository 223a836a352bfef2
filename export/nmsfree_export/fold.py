"""Fold batch norm into the convolution before it, so that none is left in the exported graph.

conv(x)·a + b with a = weight / √(var + eps), b = bias − mean·a is a convolution with weights
scaled per output channel. A head with one norm per level becomes one head per level, of which the
branches differ and the rest is one.
"""

import copy

import torch
from torch import Tensor, nn

from nmsfree_training.backbone import FrozenBatchNorm2d, ResNet
from nmsfree_training.config import STRIDES
from nmsfree_training.head import Head, LevelBatchNorm2d


def folded_conv(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Return a convolution with bias that equals `conv` followed by `norm` in evaluation mode."""
    weight, bias, mean, var, eps = _statistics(norm)
    scale = weight.double() / (var.double() + eps).sqrt()
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).float())
    start = torch.zeros_like(mean) if conv.bias is None else conv.bias
    shift = bias.double() + (start.double() - mean.double()) * scale
    folded.bias = nn.Parameter(shift.float())
    return folded


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    assert isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps


def fold_backbone(backbone: ResNet) -> ResNet:
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


def fold_head(head: Head) -> list[Head]:
    """Return one head per level, without batch norm; the same object where nothing differs.

    Predictions and filters are those of the original in every one of them: `Head.predict` of
    any makes the outputs of all levels from what `Head.towers` of each gives for its own.
    """
    # None of these carries a norm: all levels share one copy, so that it is stored once.
    names = ("cls_pred", "reg_pred", "feature_filter", "logit_filter")
    shared = {name: copy.deepcopy(getattr(head, name)) for name in names}
    shared["rival_filter"] = None if head.rival_filter is None else head.rival_filter.folded()
    per_level = isinstance(head.cls_heads[0].norm, LevelBatchNorm2d)
    folded = [_fold_level(head, level) for level in range(len(STRIDES) if per_level else 1)]
    for own in folded:
        for name, module in shared.items():
            setattr(own, name, module)
    return folded if per_level else folded * len(STRIDES)


def _fold_level(head: Head, level: int) -> Head:
    folded = copy.deepcopy(head)
    for block in [*folded.cls_heads, *folded.reg_heads]:
        norm = block.norm[level] if isinstance(block.norm, LevelBatchNorm2d) else block.norm
        if not isinstance(norm, nn.GroupNorm):
            block.conv = folded_conv(block.conv, norm)
            block.norm = nn.Identity()
    return folded

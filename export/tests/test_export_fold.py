"""Folding changes nothing but the operators."""

import dataclasses

import pytest
import torch
from torch import nn

from nmsfree_export.graph.deploy import fold_backbone, fold_head, folded_conv
from nmsfree_training.config import HeadNorm, fcos_e2e_nano
from nmsfree_training.model.backbone import FrozenBatchNorm2d, ResNet
from nmsfree_training.model.detector import Fcos


def randomise_norms(module: nn.Module) -> None:
    """Give every batch norm statistics that are not the identity."""
    generator = torch.Generator().manual_seed(3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            for value, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_var, 0.5)):
                value.data = low + torch.rand(value.shape, generator=generator)
            norm.running_mean = torch.randn(norm.running_mean.shape, generator=generator)


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_folded_convolution_equals_convolution_and_norm(bias: bool, norm: type) -> None:
    torch.manual_seed(0)
    pair = nn.Sequential(nn.Conv2d(5, 7, 3, 2, 1, bias=bias), norm(7)).eval()
    randomise_norms(pair)
    x = torch.randn(2, 5, 11, 13)
    assert torch.allclose(folded_conv(pair[0], pair[1])(x), pair(x), atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("frozen", [False, True])
def test_folded_backbone_has_no_norm_and_gives_the_same(depth: int, frozen: bool) -> None:
    torch.manual_seed(0)
    backbone = ResNet(depth, 8, frozen, 0).eval()
    randomise_norms(backbone)
    folded = fold_backbone(backbone)
    assert norms(backbone)
    assert not norms(folded)
    x = torch.randn(1, 3, 64, 96)
    for a, b in zip(folded(x), backbone(x), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize(("norm", "copies"), [("batch_per_level", 3), ("batch", 1), ("group", 1)])
def test_folded_head_gives_the_same_on_every_level(norm: HeadNorm, copies: int) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(fcos_e2e_nano(7).model, head_norm=norm, rival_iou=0.0)
    head = Fcos(config).heads["o2o"].eval()
    randomise_norms(head)
    levels = fold_head(head)
    assert len({id(level) for level in levels}) == copies
    assert not any(norms(level) for level in levels)
    assert len({id(level.cls_pred) for level in levels}) == 1  # stored once
    maps = tuple(torch.randn(2, 64, s, s) for s in (8, 4, 2))
    whole = head(maps)
    for level, x, expected in zip(levels, maps, whole, strict=True):
        for a, b in zip(level((x,))[0], expected, strict=True):
            assert torch.allclose(a, b, atol=1e-5)

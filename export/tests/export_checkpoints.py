"""Checkpoints with weights that find something."""

import torch
from torch import nn

from nmsfree_training.config import ModelConfig
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.head import Head
from nmsfree_training.model.norms import normalize
from nmsfree_training.weights.checkpoint import Checkpoint

CLASSES = tuple("abcdefg")


def make(config: ModelConfig, input_size: tuple[int, int]) -> Checkpoint:
    """Random weights with spread-out scores, of seven classes."""
    torch.manual_seed(5)
    network = Fcos(config)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    for head in network.heads.values():
        for block in [*head.cls_heads, *head.reg_heads]:
            nn.init.kaiming_normal_(block.conv.weight)
        nn.init.constant_(head.cls_pred.bias, -2.0)
        _randomise_filter(head)
    _spread(network)
    ids = tuple(range(1, 2 * len(CLASSES), 2))
    return Checkpoint(config, input_size, CLASSES, ids, network.state_dict(), {"seed": "5"})


@torch.no_grad()
def _randomise_filter(head: Head) -> None:
    """Weights as after training: elements that no level uses stay zero."""
    if head.feature_filter is not None:
        nn.init.normal_(head.feature_filter.mix.weight, std=0.05)
        nn.init.normal_(head.feature_filter.mix.bias, std=0.1)
    if head.duplicate_filter is not None:
        assert head.reg_pred.bias is not None
        head.reg_pred.bias[2:] = 2.0  # boxes of some 7 cells, as only such agree with a neighbour's
        for kind, weight in head.duplicate_filter.weights.items():
            nn.init.uniform_(weight, 0.2, 0.5)
            if kind != "same":
                weight[0 if kind == "finer" else -1] = 0.0
    if head.logit_filter is not None:
        maps = [torch.randn(2, 3, s, s) for s in (8, 4, 2)]
        for weight in head.logit_filter.parameters():
            nn.init.uniform_(weight, 0.2, 0.9)
        with torch.enable_grad():
            sum(z.square().sum() for z in head.logit_filter(maps)).backward()
        for weight in head.logit_filter.parameters():
            weight *= weight.grad != 0
            weight.grad = None


@torch.no_grad()
def _spread(network: Fcos) -> None:
    """Scale the predictions so that logits and deltas spread as a trained network's do."""
    images = normalize(torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8))
    features = network.eval().fpn(network.backbone(images))
    for head in network.heads.values():
        levels = head(features)
        for conv, index, spread in ((head.cls_pred, 0, 2.0), (head.reg_pred, 1, 0.7)):
            conv.weight *= spread / torch.cat([level[index].flatten() for level in levels]).std()

"""A small checkpoint with weights that find something, shared by the tests of this folder."""

import pytest
import torch
from torch import nn

from nmsfree_training.checkpoint import Checkpoint
from nmsfree_training.config import fcos_e2e_nano
from nmsfree_training.detector import Fcos
from nmsfree_training.normalize import normalize

CLASSES = tuple("abcdefg")


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Two heads, random weights with spread-out scores, 7 classes, 96 × 128."""
    torch.manual_seed(5)
    preset = fcos_e2e_nano(len(CLASSES))
    network = Fcos(preset.model)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    for head in network.heads.values():
        for block in [*head.cls_heads, *head.reg_heads]:
            nn.init.kaiming_normal_(block.conv.weight)
        nn.init.constant_(head.cls_pred.bias, -2.0)
    _spread(network)
    ids = tuple(range(1, 2 * len(CLASSES), 2))
    return Checkpoint(preset.model, (96, 128), CLASSES, ids, network.state_dict(), {"seed": "5"})


@torch.no_grad()
def _spread(network: Fcos) -> None:
    """Scale the predictions so that logits and deltas spread as a trained network's do."""
    images = normalize(torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8))
    features = network.eval().features(images)
    for head in network.heads.values():
        levels = head(features)
        for conv, index, spread in ((head.cls_pred, 0, 2.0), (head.reg_pred, 1, 0.7)):
            conv.weight *= spread / torch.cat([level[index].flatten() for level in levels]).std()

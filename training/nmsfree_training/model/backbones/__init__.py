"""Backbones: feature extractors without a classifier, a file each.

A backbone is made from a configuration by `of`. Its `channels` are those of C3, C4 and C5, the maps
of strides 8, 16 and 32 that it returns; its first convolution is `conv1`. `from_imagenet` gives
published ImageNet weights its own names, and `title` is what errors call it.
"""

from nmsfree_training.config import BackboneName
from nmsfree_training.model.backbones.lite0 import Lite0
from nmsfree_training.model.backbones.resnet import ResNet

Backbone = ResNet | Lite0
BACKBONES: dict[BackboneName, type[Backbone]] = {"resnet": ResNet, "lite0": Lite0}

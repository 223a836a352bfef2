"""FCOS: the three published models are this class with one or two heads."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmsfree_training.config import STRIDES, HeadName, ModelConfig, Preset
from nmsfree_training.model.backbones import BACKBONES
from nmsfree_training.model.boxes import anchor_points, decode
from nmsfree_training.model.filters import DuplicateFilter
from nmsfree_training.model.head import Head


@dataclass(frozen=True)
class Prediction:
    """What one head says of a batch; M cells = those of P3, P4, P5 concatenated."""

    logits: Tensor  # float [N, M, C]
    boxes: Tensor  # float [N, M, 4], xyxy in input pixels
    # points, strides: float [M, 2] and [M], see `boxes.anchor_points`.
    points: Tensor
    strides: Tensor
    shapes: list[tuple[int, int]]  # (h, w) of every level


class Fpn(nn.Module):
    """C3, C4, C5 → P3, P4, P5 of `channels` channels each.

    `input_projs` are listed from coarse to fine, `smooth_layers` from P5 to P3, as in the
    published checkpoints.
    """

    def __init__(self, inputs: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.input_projs = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in reversed(inputs))
        self.smooth_layers = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        coarse_to_fine = reversed(features)
        outputs: list[Tensor] = []
        above: Tensor | None = None
        for feature, project, smooth in zip(
            coarse_to_fine, self.input_projs, self.smooth_layers, strict=True
        ):
            x = project(feature)
            if above is not None:
                x = x + F.interpolate(above, size=x.shape[-2:], mode="nearest")
            above = x
            outputs.append(smooth(x))
        return tuple(reversed(outputs))


class Fcos(nn.Module):
    """Backbone, FPN and the heads named in the configuration."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = BACKBONES[config.backbone].of(config)
        self.fpn = Fpn(self.backbone.channels, config.channels)
        self.heads = nn.ModuleDict({name: Head(config, name == "o2o") for name in config.heads})
        if len(self.heads) == 2:  # as published, the o2o head starts as a copy of the o2m head
            copy_head(self.state_dict())

    def forward(
        self, images: Tensor, heads: tuple[HeadName, ...] | None = None, o2o_gradient: float = 1.0
    ) -> dict[str, Prediction]:
        """Run these heads, all by default, on float [N, 3, H, W], RGB as of `norms.normalize`.

        `o2o_gradient` is the share of the o2o head's gradient that reaches FPN and backbone.
        """
        features: tuple[Tensor, ...] = self.fpn(self.backbone(images))  # P3, P4, P5
        shapes = [(x.shape[2], x.shape[3]) for x in features]
        points, strides = anchor_points(shapes, STRIDES, images.device)
        made: dict[str, Prediction] = {}
        for name in heads or self.config.heads:
            maps = features
            if name == "o2o" and o2o_gradient != 1:
                share = o2o_gradient  # at 0 nothing is to be computed further back
                maps = tuple(x.detach().lerp(x, share) if share else x.detach() for x in maps)
            levels = self.heads[name](maps)
            logits, deltas = (  # [N, M, C], [N, M, 4]
                torch.cat([x.flatten(2).transpose(1, 2) for x in each], dim=1)
                for each in zip(*levels, strict=True)
            )
            boxes = decode(deltas.float(), points, strides)
            made[name] = Prediction(logits, boxes, points, strides, shapes)
        return made


def fresh_network(preset: Preset, seed: int) -> Fcos:
    """A network with random weights that depend on the seed alone."""
    torch.manual_seed(seed)
    network = Fcos(preset.model)
    start_filter(network, preset.train.dedup_start)
    return network


def start_filter(network: Fcos, strength: float) -> None:
    """Begin with this strength of the duplicate filter, if there is one."""
    for module in network.modules():
        if isinstance(module, DuplicateFilter):
            module.start(strength)


def place(network: Fcos, device: torch.device) -> Fcos:
    """On its device, channels last: the layout oneDNN and cuDNN convolve fastest in."""
    placed: Fcos = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


@torch.no_grad()
def copy_head(state: Mapping[str, Tensor]) -> None:
    """Give the o2o head of a state dict, in place, the weights of the o2m head, not its filters."""
    for key, value in state.items():
        if key.startswith("heads.o2m."):
            state[key.replace("heads.o2m.", "heads.o2o.")].copy_(value)

"""Optimizer and learning-rate schedule of a recipe."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nmsfree_training.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD as published (decay on everything), or AdamW without decay on norms and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            trained,
            lr=config.learning_rate * config.batch_size / 16,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def rate_factor(config: TrainConfig, iteration: int, per_epoch: int) -> float:
    """Return the learning rate at an iteration, as a share of the full one.

    A run that is short for its warm-up spends a quarter of its steps on it.
    """
    epoch = iteration / per_epoch
    if config.schedule == "step":
        factor = 0.1 ** sum(epoch >= milestone for milestone in config.milestones)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / config.epochs)))
    warmup = min(config.warmup_iterations, config.epochs * per_epoch // 4)
    if iteration < warmup:
        progress = iteration / warmup
        factor *= config.warmup_factor + (1 - config.warmup_factor) * progress
    return factor


class Ema:
    """Averaged weights and buffers of a network.

    Args:
        decay: share of the average that a step keeps once warmed up; the first steps keep
            (1 + n) / (10 + n), so that the initial weights are forgotten soon.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, steps: int) -> None:
        """Take in the weights after `steps` optimizer steps."""
        keep = min(self.decay, (1 + steps) / (10 + steps))
        averaged, latest = [], []
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                averaged.append(self.state[key])
                latest.append(value)
            else:  # counters
                self.state[key].copy_(value)
        torch._foreach_lerp_(averaged, latest, 1 - keep)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a stored average."""
        for key, value in self.state.items():
            value.copy_(state[key])

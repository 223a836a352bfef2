"""Optimizer and learning-rate schedule of a recipe."""

import math

import torch
from torch import nn

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

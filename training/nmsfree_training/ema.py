"""Exponential moving average of the weights: smoother than the last step, deployed in its place."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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

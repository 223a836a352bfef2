"""Batch norm with constants, and with the statistics of all processes, on CPU and GPU.

PyTorch's own `SyncBatchNorm` runs on GPUs only; ours is plain autograd over a differentiable sum,
so that a run of two CPU processes can be compared with a run of one.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and weights are constants (eps 1e-5)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:  # mixed precision: what comes in half goes out half
            constants = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.batch_norm(x, *constants, training=False, eps=self.eps)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose mean and variance in training are those of the global batch.

    Every process must hold as many pixels as the others.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        x = input.float()
        processes = dist.get_world_size()
        count = x.numel() // x.shape[1] * processes
        mean = _total(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _total(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        output: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return output.to(input.dtype)


class _Total(torch.autograd.Function):
    """Sum over the processes; every process's loss depends on it, so gradients are summed, too."""

    @staticmethod
    def forward(context: object, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(value: Tensor) -> Tensor:
    total = value.contiguous().clone()
    dist.all_reduce(total)
    return total


def _total(value: Tensor) -> Tensor:
    total: Tensor = _Total.apply(value)  # type: ignore[no-untyped-call]
    return total


def sync_batch_norms(network: nn.Module) -> None:
    """Replace every `nn.BatchNorm2d` in place; parameters and buffers stay the same tensors."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                synced = SyncedBatchNorm2d(child.num_features, child.eps, child.momentum)
                synced.weight, synced.bias = child.weight, child.bias
                for key, buffer in child.named_buffers():
                    setattr(synced, key, buffer)
                setattr(module, name, synced)


def freeze_statistics(network: nn.Module) -> None:
    """Put every norm without trained weights into evaluation mode: its statistics stay, too."""
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            module.eval()


MEAN_RGB = (0.485, 0.456, 0.406)  # of values in [0, 1]
STD_RGB = (0.229, 0.224, 0.225)


def normalize(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] BGR → float32 [N, 3, H, W] RGB, normalised."""
    mean, std = _constants(images.device)
    rgb = images.permute(0, 3, 1, 2).flip(1).float() / 255
    return (rgb - mean) / std


@lru_cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation, float32 [3, 1, 1], kept: to send them to a GPU makes the host wait."""
    with torch.inference_mode(False):  # whoever asks first, they also serve training
        mean = torch.tensor(MEAN_RGB, dtype=torch.float32, device=device)[:, None, None]
        std = torch.tensor(STD_RGB, dtype=torch.float32, device=device)[:, None, None]
    return mean, std

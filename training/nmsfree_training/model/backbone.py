"""ResNet-18/34/50 (He et al., arXiv:1512.03385) with torchvision's parameter names."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Blocks in layer1 … layer4.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}

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


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: ResNet-18 and 34."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        self.downsample = _shortcut(inputs, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1×1, 3×3 (carries the stride, as in torchvision), 1×1 and a shortcut: ResNet-50."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))


class ResNet(nn.Module):
    """Feature extractor without the classifier; its `channels` are those of C3, C4 and C5.

    Args:
        width: channels of the stem and of layer1 (64 in the standard network).
        frozen_stages: leading parts without gradient (1 = stem, 2 = stem and layer1, …).
    """

    def __init__(self, depth: int, width: int, frozen_norm: bool, frozen_stages: int) -> None:
        super().__init__()
        norm: Norm = FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d
        block = Bottleneck if depth >= 50 else BasicBlock
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = norm(width)
        inputs, layers = width, []
        for level, blocks in enumerate(BLOCKS[depth]):
            channels = width * 2**level
            stage = []
            for i in range(blocks):
                stage.append(block(inputs, channels, 2 if level > 0 and i == 0 else 1, norm))
                inputs = channels * block.expansion
            layers.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.channels = tuple(width * 2**level * block.expansion for level in (1, 2, 3))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        stem = nn.ModuleList([self.conv1, self.bn1])
        for part in (stem, *layers)[:frozen_stages]:
            part.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Float [N, 3, H, W] → C3, C4, C5 at strides 8, 16 and 32."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, 2, 1)
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


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

"""EfficientNet-Lite0 (Tan and Le, arXiv:1905.11946, without squeeze-excite, with ReLU6)."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from nmsfree_training.config import ModelConfig
from nmsfree_training.model.norms import FrozenBatchNorm2d, Norm

# Groups of blocks: how many, kernel, stride of the first, expansion, channels.
GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32  # channels
# First blocks of the parts that can be frozen, and the end; C3, C4 and C5 end the last three.
PARTS = (0, 1, 3, 5, 11, 16)
EPS, MOMENTUM = 1e-3, 0.01  # of the batch norms that the published weights were trained with
# Names of the original PyTorch port → ours, in a block and around the blocks.
IN_BLOCK = {"_expand_conv": "conv1", "_bn0": "bn1", "_depthwise_conv": "conv2", "_bn1": "bn2"}
IN_BLOCK |= {"_project_conv": "conv3", "_bn2": "bn3"}
AROUND = {"_conv_stem": "conv1", "_bn0": "bn1"}


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow does: what is odd goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        if pads == [kernel // 2] * 4:
            return F.conv2d(x, self.weight, self.bias, stride, kernel // 2, 1, self.groups)
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """1×1 expansion (none in the first block), depthwise convolution, 1×1 projection."""

    def __init__(
        self, inputs: int, channels: int, kernel: int, stride: int, expansion: int, norm: Norm
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self.conv1 = nn.Conv2d(inputs, wide, 1, bias=False)
            self.bn1 = norm(wide)
        self.is_expanded = expansion > 1
        self.conv2 = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.bn2 = norm(wide)
        self.conv3 = nn.Conv2d(wide, channels, 1, bias=False)
        self.bn3 = norm(channels)
        self.is_residual = stride == 1 and inputs == channels

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self.bn1(self.conv1(x))) if self.is_expanded else x
        wide = F.relu6(self.bn2(self.conv2(wide)))
        y: Tensor = self.bn3(self.conv3(wide))
        return x + y if self.is_residual else y


class Lite0(nn.Module):
    """See `backbones`; arguments as of `ResNet`."""

    channels = (40, 112, 320)

    def __init__(self, frozen_norm: bool, frozen_stages: int) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            if not frozen_norm:
                return nn.BatchNorm2d(channels, EPS, MOMENTUM)
            frozen = FrozenBatchNorm2d(channels)
            frozen.eps = EPS
            return frozen

        self.conv1 = SameConv2d(3, STEM, 3, 2, bias=False)
        self.bn1 = norm(STEM)
        self.blocks = nn.ModuleList()
        inputs = STEM
        for count, kernel, stride, expansion, channels in GROUPS:
            for number in range(count):
                step = stride if number == 0 else 1
                block = InvertedResidual(inputs, channels, kernel, step, expansion, norm)
                self.blocks.append(block)
                inputs = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        parts = [self.blocks[first:end] for first, end in pairwise(PARTS)]
        for part in (self.conv1, self.bn1, *parts)[: frozen_stages and frozen_stages + 2]:
            part.requires_grad_(False)

    @classmethod
    def of(cls, config: ModelConfig) -> Self:
        return cls(config.frozen_norm, config.frozen_stages)

    @staticmethod
    def title(config: ModelConfig) -> str:
        return "EfficientNet-Lite0"

    @staticmethod
    def from_imagenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the original PyTorch port without its classifier."""
        renamed = {}
        for key, value in state.items():
            found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
            if found and found[2] in IN_BLOCK:
                renamed[f"blocks.{found[1]}.{IN_BLOCK[found[2]]}.{found[3]}"] = value
            name, _, rest = key.partition(".")
            if name in AROUND:
                renamed[f"{AROUND[name]}.{rest}"] = value
        return renamed

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Float [N, 3, H, W] → C3, C4, C5 at strides 8, 16 and 32."""
        x, levels = F.relu6(self.bn1(self.conv1(images))), []
        for first, end in pairwise(PARTS):
            for block in self.blocks[first:end]:
                x = block(x)
            levels.append(x)
        c3, c4, c5 = levels[-3:]
        return c3, c4, c5

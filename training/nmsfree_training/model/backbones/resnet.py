"""ResNet-18/34/50 (He et al., arXiv:1512.03385) with torchvision's parameter names."""

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from nmsfree_training.config import ModelConfig
from nmsfree_training.model.norms import FrozenBatchNorm2d, Norm

# Blocks in layer1 … layer4.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


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
    """See `backbones`.

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

    @classmethod
    def of(cls, config: ModelConfig) -> Self:
        return cls(config.depth, config.width, config.frozen_norm, config.frozen_stages)

    @staticmethod
    def title(config: ModelConfig) -> str:
        return f"the ResNet-{config.depth} of width {config.width}"

    @staticmethod
    def from_imagenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Torchvision's weights without its classifier."""
        return {key: value for key, value in state.items() if not key.startswith("fc.")}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Float [N, 3, H, W] → C3, C4, C5 at strides 8, 16 and 32."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, 2, 1)
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)

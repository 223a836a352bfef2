"""Feature pyramid (Lin et al., arXiv:1612.03144): no norm, no activation."""

from torch import Tensor, nn
from torch.nn import functional as F


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

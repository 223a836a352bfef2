"""ImageNet normalisation, the only one of this project."""

from functools import lru_cache

import torch
from torch import Tensor

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

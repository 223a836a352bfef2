"""ImageNet normalisation, the only one of this project."""

import torch
from torch import Tensor

MEAN_RGB = (0.485, 0.456, 0.406)  # of values in [0, 1]
STD_RGB = (0.229, 0.224, 0.225)


def normalize(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] BGR → float32 [N, 3, H, W] RGB, normalised."""
    mean = torch.tensor(MEAN_RGB, device=images.device)[:, None, None]
    std = torch.tensor(STD_RGB, device=images.device)[:, None, None]
    rgb = images.permute(0, 3, 1, 2).flip(1).float() / 255
    return (rgb - mean) / std

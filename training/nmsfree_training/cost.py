"""What a network costs to run."""

import copy

import torch
from torch import Tensor, nn

from nmsfree_training.config import HeadName
from nmsfree_training.detector import Fcos


def gmac(network: Fcos, input_size: tuple[int, int], head: HeadName | None = None) -> float:
    """Return the multiply-adds of all convolutions for one image, in 10⁹.

    Norms, activations, resizing and decoding are left out; batch norm folds into the
    convolutions anyway.

    Args:
        network: is left as it is; nothing is computed, shapes alone run through a copy.
        input_size: (height, width) in pixels.
        head: the one that runs; None takes the deployed head.
    """
    shapes_only = copy.deepcopy(network).to("meta").eval()
    total = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += output.numel() * module.weight[0].numel()  # one kernel for every output value

    for module in shapes_only.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        image = torch.zeros(1, 3, *input_size, device="meta")
        shapes_only(image, heads=(head or network.deployed_head,))
    return total / 1e9

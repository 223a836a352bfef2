"""ImageNet weights for the backbone, from a file with torchvision's parameter names."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor

from nmsfree.errors import CheckpointError
from nmsfree_training.detector import Fcos


def load_imagenet(network: Fcos, path: Path) -> None:
    """Load a torchvision ResNet state dict (`.pth` or `.safetensors`) into the backbone.

    The classifier `fc` and the counters of batch norm are ignored.

    Raises:
        CheckpointError: unreadable, or another network's keys or shapes.
    """
    own = network.backbone.state_dict()
    state = {
        key: value
        for key, value in _read(path).items()
        if not key.startswith("fc.") and (key in own or not key.endswith("num_batches_tracked"))
    }
    wrong = [k for k, v in own.items() if k in state and state[k].shape != v.shape]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    if wrong or missing or extra:
        raise CheckpointError(
            f"{path}: does not fit the ResNet-{network.config.depth} of width "
            f"{network.config.width}: {len(missing)} keys missing, {len(extra)} too many, "
            f"{len(wrong)} of another shape"
        )
    network.backbone.load_state_dict(state, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: cannot be read as weights ({reason})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, expected a state dict")
    return state

"""ImageNet weights for the backbone, from a file with torchvision's parameter names."""

from pathlib import Path

from torch import Tensor

from nmsfree.errors import CheckpointError
from nmsfree_training.detector import Fcos
from nmsfree_training.torch_file import check_values, read_safetensors, read_torch_file


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
    check_values(path, state, own)
    network.backbone.load_state_dict(state, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[1]
    state = read_torch_file(path)
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise CheckpointError(
            f"{path}: holds {type(state).__name__} with other things than tensors, expected a "
            "state dict with torchvision's names"
        )
    return state

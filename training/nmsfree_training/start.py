"""What stands at the start of a run: a network on its device, and data that fit together."""

import torch

from nmsfree.data.coco import DetectionDataset
from nmsfree.errors import DataError
from nmsfree_training.config import Preset
from nmsfree_training.detector import Fcos


def fresh_network(preset: Preset, seed: int) -> Fcos:
    """A network with random weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return Fcos(preset.model)


def place(network: Fcos, device: torch.device) -> Fcos:
    """On its device, channels last: the layout oneDNN and cuDNN convolve fastest in."""
    placed: Fcos = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def check_data(train_set: DetectionDataset, val_set: DetectionDataset | None) -> None:
    if not train_set.samples:
        raise DataError(f"{train_set.annotation_file}: no images to train on")
    if val_set is not None and set(val_set.class_names) != set(train_set.class_names):
        other = set(val_set.class_names) ^ set(train_set.class_names)
        raise DataError(
            f"{val_set.annotation_file}: its classes differ from those of "
            f"{train_set.annotation_file} ({', '.join(sorted(other)[:5])}): use one list"
        )

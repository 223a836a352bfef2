"""Training state beside the weights: what a run needs to go on after its last whole epoch.

No random state is kept: data order and augmentation depend on (seed, epoch, index) alone, and
the network draws nothing at random.
"""

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from nmsfree.atomic import write_atomic
from nmsfree.errors import CheckpointError
from nmsfree_training.torch_file import read_torch_file


@dataclass(frozen=True)
class TrainState:
    """Epochs done, iterations done, best AP so far (0–1), and the optimizer's state dict."""

    epoch: int
    iteration: int
    best: float
    optimizer: dict[str, Any]


def save_state(state: TrainState, path: Path) -> None:
    """Write the state; the file appears whole or not at all."""
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path) -> TrainState:
    """Read a state.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file: start again without --resume")
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.keys() != {f.name for f in fields(TrainState)}:
        raise CheckpointError(f"{path}: not a training state: start again without --resume")
    return TrainState(**content)

"""Training state beside the weights: what a run needs to go on after its last whole epoch.

No random state is kept: data order and augmentation depend on (seed, epoch, index) alone, and
the network draws nothing at random.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nmsfree.errors import CheckpointError
from nmsfree_training.checkpoint import write_atomic


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
    try:
        return TrainState(**torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, UnpicklingError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({str(error)[:100]}): start again without --resume"
        ) from None

"""Training state: everything a run needs to go on exactly where it was, in one file.

One file, so that no kill can separate weights from optimizer. Two are kept: `last.state.pt` and,
from the save before, `previous.state.pt`. No random state is kept: data order and augmentation
depend on (seed, epoch, index) alone, and the network draws nothing at random.
"""

import hashlib
import io
import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from nmsfree.errors import CheckpointError
from nmsfree.files import write_atomic
from nmsfree_training.torch_file import read_torch_file

logger = logging.getLogger(__name__)

DIGEST = 32  # bytes of a SHA-256
LAST, PREVIOUS, DAMAGED = "last.state.pt", "previous.state.pt", "damaged.state.pt"


@dataclass
class Position:
    """How far a run is.

    Attributes:
        epoch: whole epochs done, evaluation included.
        step: optimizer steps done in the epoch after those.
        iteration: optimizer steps done in all.
        best: best AP so far, 0–1; −1 = none measured.
        sums: of each loss over the steps of this epoch.
        seconds, wait: spent on the steps of this epoch, and of it waiting for data.
        failed: images left out so far and why, by path; of the first process.
    """

    epoch: int = 0
    step: int = 0
    iteration: int = 0
    best: float = -1.0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    wait: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step}"


@dataclass(frozen=True)
class TrainState:
    """What is stored.

    Attributes:
        recipe: settings that must be the same when the run goes on, JSON values by name.
        position: fields of a `Position`.
        network, optimizer, scaler: their state dicts; weights as trained, not averaged.
        ema: averaged weights, or None.
    """

    recipe: dict[str, Any]
    position: dict[str, Any]
    network: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    ema: dict[str, Any] | None


def save_state(state: TrainState, folder: Path) -> None:
    """Write the state; the one before is kept. No kill leaves the folder without a whole one."""
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    # PyTorch does not compare the checksums of a zip archive, and none guards its table of
    # contents. Ours is the archive's comment: its length is in the last two bytes.
    whole = buffer.getvalue()[:-2] + DIGEST.to_bytes(2, "little")
    if (folder / LAST).is_file():
        (folder / LAST).replace(folder / PREVIOUS)
    write_atomic(folder / LAST, whole + hashlib.sha256(whole).digest())


def put_damaged_aside(folder: Path) -> None:
    """Take a damaged last file out of the way, so that it replaces nothing that is whole."""
    if (folder / LAST).is_file():
        (folder / LAST).replace(folder / DAMAGED)


def load_state(folder: Path) -> tuple[TrainState, str | None]:
    """Read the newest state that is whole, and say so if it is not the last one.

    Raises:
        CheckpointError: neither file can be used.
    """
    try:
        return _read(folder / LAST), None
    except CheckpointError as error:
        if not (folder / PREVIOUS).is_file():
            raise
        last = error
    try:
        return _read(folder / PREVIOUS), f"{last}; going on from {PREVIOUS}, saved before it"
    except CheckpointError as error:
        raise CheckpointError(
            f"{last}; {error}: no state is left to go on from, start a new run from the weights "
            f"with --init {folder / 'last.safetensors'}"
        ) from None


def _read(path: Path) -> TrainState:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file, expected a run to resume: check --out, or leave out --resume"
        )
    _check_digest(path)
    content = read_torch_file(path)
    if not (_has_fields(content, TrainState) and _has_fields(content["position"], Position)):
        raise CheckpointError(
            f"{path}: not a training state of this version: start again without --resume"
        )
    return TrainState(**content)


def _has_fields(content: Any, kind: type[TrainState] | type[Position]) -> bool:
    return isinstance(content, dict) and content.keys() == {f.name for f in fields(kind)}


def _check_digest(path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    if hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
        raise CheckpointError(
            f"{path}: damaged (does not match its checksum), or of another version"
        )

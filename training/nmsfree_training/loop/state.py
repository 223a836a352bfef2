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
from typing import Annotated, Any, TypeVar

import msgspec
import torch
from msgspec import Meta

from nmsfree.errors import CheckpointError
from nmsfree.files import write_atomic
from nmsfree.parsing import read_bytes
from nmsfree_training.weights.torch_file import MAX_BYTES, read_torch_file

logger = logging.getLogger(__name__)

T = TypeVar("T")
Count = Annotated[int, Meta(ge=0, le=2**40)]
Seconds = Annotated[float, Meta(ge=0)]
DIGEST = 32  # bytes of a SHA-256
LAST, PREVIOUS, DAMAGED = "last.state.pt", "previous.state.pt", "damaged.state.pt"


@dataclass
class Position:
    """How far a run is."""

    epoch: Count = 0  # done, evaluation included; --minutes may cut the last one short
    step: Count = 0  # optimizer steps done in the epoch after those
    iteration: Count = 0  # optimizer steps done in all
    best: Annotated[float, Meta(ge=-1, le=1)] = -1.0  # best AP so far, 0–1; −1 = none measured
    # Of each loss over the steps of this epoch.
    sums: dict[str, float] = field(default_factory=dict)
    # seconds, wait: spent on the steps of this epoch, and of it waiting for data.
    seconds: Seconds = 0.0
    wait: Seconds = 0.0
    # Steps of this epoch whose gradient was not finite (fp16): they changed nothing.
    skipped: Count = 0
    # Images left out so far and why, by path; of the first process.
    failed: dict[str, str] = field(default_factory=dict)
    best_epoch: Count = 0  # after which the best AP was measured
    spent: Seconds = 0.0  # on what was before this epoch, evaluation included
    evaluation: Seconds = 0.0  # of the last one; 0 = none yet
    # timed, timing: steps of the run without the first of each process, and their seconds.
    timed: Count = 0
    timing: Seconds = 0.0

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step}"


@dataclass(frozen=True)
class TrainState:
    """What is stored."""

    # Settings that must be the same when the run goes on, JSON values by name.
    recipe: dict[str, Any]
    position: dict[str, Any]  # fields of a `Position`
    # network, optimizer, scaler: their state dicts; weights as trained, not averaged.
    network: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    ema: dict[str, Any] | None  # averaged weights, or None


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


def quarantine_damaged(folder: Path) -> None:
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
    if not _is_whole(read_bytes(path, MAX_BYTES, CheckpointError)):
        raise CheckpointError(
            f"{path}: damaged (does not match its checksum), or of another version"
        )
    content = read_torch_file(path)
    try:
        state = _convert(content, TrainState)
        _convert(state.position, Position)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not a training state of this version ({error}): start again without --resume"
        ) from None
    return state


def _is_whole(content: bytes) -> bool:
    return hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]


def _convert(content: Any, kind: type[T]) -> T:
    """Make a record of what was unpickled; `ValueError` for other fields or other types."""
    made = msgspec.convert(content, kind)
    unknown = content.keys() - {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"unknown: {', '.join(map(str, unknown))}")
    return made

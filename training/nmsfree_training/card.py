"""Model cards: how a bundled checkpoint was made, what it costs and what it scores."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from nmsfree.decode import Sha256, Share
from nmsfree.errors import CheckpointError, InputError
from nmsfree.files import write_json
from nmsfree.identity import sha256
from nmsfree.text import shown
from nmsfree_training.checkpoint import load_checkpoint
from nmsfree_training.cost import gmac
from nmsfree_training.metrics_file import read_metrics


class Card(TypedDict):
    """The content of a card.

    command, seed: of the training run. minutes, machine: what the training took. AP: 0–1 by
    split. gmac: 10⁹ multiply-adds of the deployed head for one image of the deployed size.
    sha256: of the checkpoint file.
    """

    command: str
    seed: int
    minutes: float
    machine: str
    AP: dict[str, Share]
    gmac: float
    sha256: Sha256


def write_card(
    checkpoint_path: Path,
    card_path: Path,
    *,
    ap: Mapping[str, float],
    minutes: float,
    machine: str | None = None,
) -> Card:
    """Write the card of a checkpoint and return it.

    Args:
        ap: AP (0–1) by split.
        minutes: that the training took.
        machine: where it ran; None takes what the checkpoint says.

    Raises:
        CheckpointError: the checkpoint cannot be read, or does not say how it was made.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    said = checkpoint.provenance
    missing = [k for k in ("command", "seed", "machine") if k not in said]
    if missing:
        raise CheckpointError(
            f"{checkpoint_path}: does not say its {', '.join(missing)}, expected a checkpoint of "
            "`nmsfree train`"
        )
    if not re.fullmatch("[0-9]{1,18}", said["seed"]):
        raise CheckpointError(f"{checkpoint_path}: its seed is {shown(said['seed'])!r}")
    card = Card(
        command=said["command"],
        seed=int(said["seed"]),
        minutes=round(minutes, 1),
        machine=machine or said["machine"],
        AP={split: round(value, 4) for split, value in ap.items()},
        gmac=round(gmac(checkpoint.build(), checkpoint.input_size), 4),
        sha256=sha256(checkpoint_path),
    )
    write_json(card_path, card)
    return card


def minutes_of_run(checkpoint_path: Path) -> float:
    """Return the minutes of training that `metrics.jsonl` beside a checkpoint adds up to.

    Raises:
        InputError: there is no such file, or it is not of a training run.
    """
    path = checkpoint_path.parent / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no such file, so the training time is unknown: give --minutes")
    records = read_metrics(path)
    if any("seconds" not in record for record in records):
        raise InputError(f"{path}: an epoch does not say its seconds: give --minutes")
    return sum(record["seconds"] for record in records) / 60

"""Model cards: how a bundled checkpoint was made, what it costs and what it scores."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from nmsfree.errors import CheckpointError, InputError
from nmsfree.files import write_json
from nmsfree.machine import sha256
from nmsfree.parsing import Sha256, Share
from nmsfree.text import shown
from nmsfree_training.config import HeadName
from nmsfree_training.model.detector import Fcos
from nmsfree_training.monitor.curves import read_metrics
from nmsfree_training.weights.checkpoint import load_checkpoint


def gmac(network: Fcos, input_size: tuple[int, int], head: HeadName | None = None) -> float:
    """Return the multiply-adds of all convolutions for one image of (height, width), in 10⁹.

    Norms, activations, resizing and decoding are left out; batch norm folds into the convolutions
    anyway. Nothing is computed, shapes alone run through a copy. `head` None is the deployed one.
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
        shapes_only(image, heads=(head or network.config.deployed_head,))
    return total / 1e9


class Card(TypedDict):
    """The content of a card."""

    command: str  # of the training run
    seed: int
    minutes: float  # that the training took
    machine: str  # where
    AP: dict[str, Share]  # by split
    gmac: float  # 10⁹ multiply-adds of the deployed head for one image of the deployed size
    sha256: Sha256  # of the checkpoint file


def write_card(
    checkpoint_path: Path,
    card_path: Path,
    *,
    ap: Mapping[str, float],
    minutes: float,
    machine: str | None = None,
) -> Card:
    """Write the card of a checkpoint and return it; `ap` is 0–1 by split.

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

"""Which checkpoints are measured, and where they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nmsfree.datasets.rows import COCO_CATEGORY_IDS, COCO_NAMES
from nmsfree.errors import InputError
from nmsfree.machine import sha256

if TYPE_CHECKING:
    from nmsfree_training.weights.checkpoint import Checkpoint

NANO = ("fcos_rt_nano", "fcos_o2o_nano", "fcos_e2e_nano")
PUBLISHED = {  # the published experiment's models and files
    "fcos_rt_r18_3x": "fcos_rt_r18_3x_coco.pth",
    "fcos_o2o_r18_3x": "fcos_rt_r18_3x_top1_coco.pth",
    "fcos_e2e_r18_3x": "fcos_e2e_r18_3x_coco.pth",
}


@dataclass(frozen=True)
class Weights:
    """A checkpoint to measure: the file that is exported, and its content."""

    file: Path
    checkpoint: "Checkpoint"
    sha256: str  # of the file
    training: str  # "digits", "published", or "untrained" for random weights

    @property
    def name(self) -> str:
        return self.checkpoint.model.name


def open_weights(path: Path, training: str, model: str | None = None) -> Weights:
    """Read a checkpoint (CheckpointError: it is missing or cannot be read)."""
    from nmsfree_training.weights.checkpoint import load_checkpoint

    return Weights(path, load_checkpoint(path, model), sha256(path), training)


def random_weights(name: str, folder: Path) -> Weights:
    """Write random weights (seed 0) for a preset and open them like any checkpoint."""
    from nmsfree_training.config import preset
    from nmsfree_training.model.detector import Fcos
    from nmsfree_training.weights.checkpoint import Checkpoint, save_checkpoint
    from nmsfree_training.weights.published import from_published_keys, random_state_dict

    chosen = preset(name, len(COCO_NAMES))
    network = Fcos(chosen.model)
    random = from_published_keys(chosen.model.heads, random_state_dict(network, seed=0))
    made = Checkpoint(
        chosen.model,
        chosen.input_size,
        COCO_NAMES,
        COCO_CATEGORY_IDS,
        network.state_dict() | random,
        {"weights": "random, seed 0: untrained"},
    )
    path = folder / f"{name}.random.safetensors"
    save_checkpoint(made, path)
    return open_weights(path, "untrained")


def trained(folder: Path) -> tuple[list[Weights], dict[str, str]]:
    """Open the trained nano models; one whose file is missing is skipped, with the reason.

    InputError: the folder of weights does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the one with the weights")
    files = {name: folder / f"{name}.safetensors" for name in NANO}
    skipped = {
        name: f"{path.name} is not in the folder of weights: train it with "
        f"`nmsfree train --data data/digits --model {name}`"
        for name, path in files.items()
        if not path.is_file()
    }
    found = [open_weights(p, "digits") for name, p in files.items() if name not in skipped]
    return found, skipped


def published(name: str, folder: Path, work: Path) -> Weights:
    """Open a published model, with random weights where the published file is missing."""
    path = folder / "published" / PUBLISHED[name]
    return open_weights(path, "published", name) if path.is_file() else random_weights(name, work)


def choose(
    folder: Path, asked: Sequence[str] | None, usual: Sequence[str] = NANO
) -> tuple[list[Weights], dict[str, str]]:
    """Open the trained models that were asked for, or the usual ones; and why some are missing.

    InputError: there is no such model, or none at all.
    """
    found, missing = trained(folder)
    known = [one.name for one in found]
    for name in asked or ():
        if name not in known:
            raise InputError(
                f"model is {name!r}, the folder of weights has: {', '.join(known) or 'none'}"
            )
    wanted = asked or usual
    skipped = {name: reason for name, reason in missing.items() if name in wanted}
    chosen = [one for one in found if one.name in wanted]
    if not chosen:
        raise InputError("nothing to measure: " + "; ".join(skipped.values()))
    return chosen, skipped

"""Retrofit: an NMS-based detector learns to do without, by training one new head."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from nmsfree.errors import CheckpointError
from nmsfree_training.config import PRESETS, HeadName, ModelConfig, Preset, preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint

NANO_EPOCHS = 12  # other sizes take a third of their recipe's epochs


@dataclass(frozen=True)
class Retrofit:
    """A network whose o2o head is to be trained on a finished o2m detector.

    Attributes:
        network: the finished detector with a new o2o head, a copy of the o2m head; a max filter
            of its own changes nothing yet.
        preset: its configuration and a recipe for the new head.
        heads: those that are trained.
    """

    network: Fcos
    preset: Preset
    heads: tuple[HeadName, ...]


def retrofit(
    path: Path,
    class_names: tuple[str, ...],
    unfreeze: bool,
    frozen_stages: int | None = None,
) -> Retrofit:
    """Give an NMS-based detector a second head that needs none.

    Args:
        path: checkpoint with an o2m head; an o2o head in it is replaced.
        unfreeze: train everything, and let the gradient of the o2o head through to backbone and
            neck; otherwise only the o2o head is trained.
        frozen_stages: leading parts of the backbone that are not trained either way; None takes
            the checkpoint's.

    Raises:
        CheckpointError: no o2m head, or other classes than the dataset's.
    """
    checkpoint = load_checkpoint(path)
    _check_retrofit(path, checkpoint, class_names)
    config = _two_headed(checkpoint.model, frozen_stages)
    network = Fcos(config)
    state = {
        key: checkpoint.state.get(key.replace("heads.o2o.", "heads.o2m."), initial)
        for key, initial in network.state_dict().items()
    }
    network.load_state_dict(state)
    if not unfreeze:
        network.requires_grad_(False)
        network.heads["o2o"].requires_grad_(True)
    chosen = _recipe(config, checkpoint.input_size, unfreeze)
    return Retrofit(network, chosen, ("o2m", "o2o") if unfreeze else ("o2o",))


def _two_headed(model: ModelConfig, frozen_stages: int | None) -> ModelConfig:
    """The same network with both heads, and the filters of the preset of that name, if any."""
    name = _two_headed_name(model.name)
    like = preset(name).model if name in PRESETS else ModelConfig(name, 1, ("o2o",))
    return replace(
        model,
        name=name,
        heads=("o2m", "o2o"),
        frozen_stages=model.frozen_stages if frozen_stages is None else frozen_stages,
        max_filter=like.max_filter,
        rival_iou=like.rival_iou,
        deployed_rival_iou=like.deployed_rival_iou,
    )


def _recipe(config: ModelConfig, input_size: tuple[int, int], unfreeze: bool) -> Preset:
    """The recipe of the preset of this name, or that for ResNet-18, shortened.

    The o2m head is finished: the o2o head starts at once, and reaches the rest if that is trained.
    """
    name = config.name if config.name in PRESETS else "fcos_e2e_r18"
    recipe = preset(name, config.num_classes).train
    epochs = NANO_EPOCHS if name.endswith("nano") else max(1, recipe.epochs // 3)
    milestones = tuple(round(m * epochs / recipe.epochs) for m in recipe.milestones)
    recipe = replace(recipe, epochs=epochs, milestones=milestones, o2o_start=0.0)
    if unfreeze:
        recipe = replace(recipe, o2o_gradient=1.0)
    return Preset(config, recipe, input_size)


def _check_retrofit(path: Path, checkpoint: Checkpoint, class_names: tuple[str, ...]) -> None:
    if "o2m" not in checkpoint.model.heads:
        raise CheckpointError(
            f"{path}: {checkpoint.model.name} has no one-to-many head: it needs no NMS already"
        )
    if checkpoint.class_names != class_names:
        raise CheckpointError(
            f"{path}: trained for {len(checkpoint.class_names)} classes "
            f"({', '.join(checkpoint.class_names[:3])}, …), the dataset has {len(class_names)} "
            f"({', '.join(class_names[:3])}, …): retrofit on the data it was trained on, or "
            "fine-tune with --init"
        )


def _two_headed_name(name: str) -> str:
    """fcos_rt_nano → fcos_e2e_nano, fcos_rt_r18_3x → fcos_e2e_r18, as the presets are called."""
    return name.replace("_rt_", "_e2e_").removesuffix("_3x")


def freeze_statistics(network: nn.Module) -> None:
    """Put every norm without trained weights into evaluation mode: its statistics stay, too."""
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            module.eval()

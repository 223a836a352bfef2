"""What stands at the start of a run: data that fit together, and weights from somewhere.

Weights start from another checkpoint, a ResNet's, or a detector to retrofit.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.datasets.sizes import HARD, LEAST, HeightWidth, Sizes, count_small, propose_size
from nmsfree.errors import CheckpointError, DataError
from nmsfree.text import shown
from nmsfree_training.config import (
    PRESETS,
    HeadName,
    ModelConfig,
    Preset,
    at_size,
    preset,
    with_epochs,
)
from nmsfree_training.criterion.assignment import MIN_SIDE
from nmsfree_training.data.examples import largest_size
from nmsfree_training.model.backbones import BACKBONES
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import load_checkpoint
from nmsfree_training.weights.torch_file import (
    check_values,
    is_state_dict,
    read_safetensors,
    read_torch_file,
)


@dataclass(frozen=True)
class ObjectSizes:
    """Objects at one input size."""

    size: HeightWidth
    objects: int
    tiny: int  # of which a side is under `LEAST`
    small: int  # under `HARD`, the tiny ones included

    @classmethod
    def count(cls, objects: Sizes, pictures: Sizes, size: HeightWidth) -> "ObjectSizes":
        """Arguments as of `sizes.count_small`."""
        return cls(size, len(objects), *count_small(objects, pictures, size))

    def __str__(self) -> str:
        tiny, small = (f"{n:,} ({n / max(1, self.objects):.0%})" for n in (self.tiny, self.small))
        return (
            f"at {self.size[0]} × {self.size[1]} {tiny} of {self.objects:,} objects are under "
            f"{LEAST:.0f} px, {small} under {HARD:.0f} px"
        )

    @property
    def too_small(self) -> int:
        """Tiny ones count twice."""
        return self.tiny + self.small


@dataclass(frozen=True)
class Objects:
    """What there is to train on."""

    images: int  # all, also those without objects
    count: int  # objects, without crowd regions
    crowd: int  # regions of many objects: no targets
    sizes: ObjectSizes  # at the model's input; the tiny ones are no targets there
    never: int  # those of them that stay as small at the largest size that the recipe resizes to
    absent: tuple[str, ...]  # classes without any other object
    proposed: ObjectSizes | None  # at another input size that shows more of them

    def __str__(self) -> str:
        text = f"{self.count:,} objects"
        if self.crowd:
            text += f", and {self.crowd:,} crowd regions that are not trained on"
        if self.sizes.small:
            text += f"; {self.sizes}"
        if self.sizes.tiny:
            text += f"; the former are not trained on at that size, {self.never:,} at none"
        return text

    def advice(self) -> str | None:
        """Another input size, where this one is too small."""
        if self.proposed is None:
            return None
        height, width = self.proposed.size
        return f"many objects are small: give --size {height} {width}; {self.proposed}"


def count_objects(dataset: DetectionDataset, preset: Preset) -> Objects:
    """Count what a recipe trains on, by the sizes in the annotations."""
    samples = dataset.samples
    counts = [len(sample.boxes) for sample in samples]
    pictures = np.array([(s.width, s.height) for s in samples], np.float64)  # [images, 2]
    most = [largest_size(s.height, s.width, preset.train, preset.input_size) for s in samples]
    largest = np.repeat(np.array(most, np.float64)[:, ::-1], counts, axis=0)
    pictures = np.repeat(pictures, counts, axis=0)  # [objects, 2]
    crowd = np.concatenate([sample.iscrowd for sample in samples])
    labels = np.concatenate([sample.labels for sample in samples])
    corners = np.concatenate([sample.boxes for sample in samples]).reshape(-1, 2, 2)
    inside = np.clip(corners, 0, pictures[:, None])
    sides = inside[:, 1] - inside[:, 0]  # [objects, 2], pixels of the picture
    never = ~crowd & ((sides * largest / pictures).min(axis=1, initial=np.inf) < MIN_SIDE)
    present = set(labels[~crowd & ~never].tolist())
    targets = sides[~crowd], pictures[~crowd]
    sizes = ObjectSizes.count(*targets, preset.input_size)
    proposed = ObjectSizes.count(*targets, propose_size(*targets)) if sizes.small else sizes
    return Objects(
        images=len(samples),
        count=int((~crowd).sum()),
        crowd=int(crowd.sum()),
        sizes=sizes,
        never=int(never.sum()),
        absent=tuple(n for label, n in enumerate(dataset.class_names) if label not in present),
        proposed=proposed if proposed.too_small < sizes.too_small else None,
    )


def check_data(
    preset: Preset, train_set: DetectionDataset, val_set: DetectionDataset | None
) -> Objects:
    """Refuse data that cannot be trained on; returns what is there to train on.

    Raises:
        DataError: no image, no object of a size that is trained on, or other classes in `val_set`.
    """
    file = shown(train_set.annotation_file)
    if not train_set.samples:
        raise DataError(f"{file}: no images to train on")
    found = count_objects(train_set, preset)
    if found.count == found.never:
        height, width = preset.input_size
        raise DataError(
            f"{file}: no object to train on in the {found.images:,} images of split "
            f"{shown(train_set.name)!r}: found {found.count:,} boxes, {found.never:,} of them "
            f"under {MIN_SIDE:.0f} px once resized ({height} × {width}), and "
            f"{found.crowd:,} crowd regions; expected larger ones: look at them with `nmsfree data "
            "check`, give a larger --size, cut large pictures into tiles, or choose another --split"
        )
    if val_set is not None and set(val_set.class_names) != set(train_set.class_names):
        other = set(val_set.class_names) ^ set(train_set.class_names)
        raise DataError(
            f"{shown(val_set.annotation_file)}: its classes differ from those of {file} "
            f"({shown(', '.join(sorted(other)[:5]))}): use one list"
        )
    return found


# Weights of another checkpoint.


@dataclass(frozen=True)
class Loaded:
    """What `fine_tune` took from a checkpoint."""

    size: tuple[int, int]  # (height, width) in pixels that its network was trained at
    taken: int  # tensors loaded whole
    total: int  # tensors of the network
    rows: tuple[str, ...]  # classes whose predictor was found by name
    fresh: tuple[str, ...]  # names of the tensors that keep their initial values, wholly or in part

    def __str__(self) -> str:
        text = f"{self.taken} of {self.total} tensors loaded"
        if self.rows:
            text += f", and the predictors of {len(self.rows)} classes of the same name"
        others = [name for name in self.fresh if ".cls_pred." not in name]
        if len(others) < len(self.fresh):
            text += "; new: the predictors of the other classes"
        if others:
            more = ", …" if len(others) > 4 else ""
            text += f"; not in it: {', '.join(others[:4])}{more}"
        return text


def fine_tune(network: Fcos, path: Path, class_names: tuple[str, ...]) -> Loaded:
    """Start from any checkpoint of the same architecture, whatever its classes and heads.

    A head that the checkpoint lacks starts as a copy of the one it has. Class predictors are
    taken row by row for classes of the same name, the others keep their initial values.

    Raises:
        CheckpointError: unreadable, or another backbone, FPN or head size.
    """
    source = load_checkpoint(path)
    state, found = dict(network.state_dict()), set[str]()  # classes of the same name
    taken, fresh = 0, []
    for key, value in state.items():
        old = source.state.get(_source_key(key, source.model))
        if old is None:
            fresh.append(key)
        elif ".cls_pred." in key and source.class_names != class_names:
            common = set(source.class_names) & set(class_names)
            if value.shape[1:] != old.shape[1:]:
                common.clear()
            state[key] = value.clone()
            for name in common:
                state[key][class_names.index(name)] = old[source.class_names.index(name)]
            found |= common
            if len(common) < len(class_names):
                fresh.append(key)
        elif old.shape == value.shape:
            state[key] = old
            taken += 1
        else:
            raise CheckpointError(
                f"{path}: {key} has shape {tuple(old.shape)}, {network.config.name} has "
                f"{tuple(value.shape)}: choose the --model it was trained as "
                f"({source.model.name})"
            )
    if not any(key.startswith("backbone.") and key in source.state for key in state):
        raise CheckpointError(f"{path}: holds nothing that {network.config.name} could use")
    network.load_state_dict(state)
    return Loaded(source.input_size, taken, len(state), tuple(sorted(found)), tuple(fresh))


def _source_key(key: str, source: ModelConfig) -> str:
    """The key whose tensor serves `key`: that of the other head where the head is missing."""
    if key.startswith("heads."):
        _, head, rest = key.split(".", 2)
        if head not in source.heads:
            return f"heads.{source.heads[0]}.{rest}"
    return key


def load_imagenet(network: Fcos, path: Path) -> None:
    """Load a state dict trained on ImageNet (`.pth` or `.safetensors`) into the backbone.

    That of torchvision's ResNet, or of the original PyTorch port of EfficientNet-Lite0. Classifiers
    and counters of batch norm are ignored.

    Raises:
        CheckpointError: unreadable, or another network's keys or shapes.
    """
    safe = path.suffix == ".safetensors"
    content = read_safetensors(path)[1] if safe else read_torch_file(path)
    if not is_state_dict(content):
        raise CheckpointError(
            f"{path}: holds {type(content).__name__} with other things than tensors, expected a "
            "state dict with the names of torchvision's ResNet, or of EfficientNet-Lite0's port"
        )
    kind = BACKBONES[network.config.backbone]
    own = network.backbone.state_dict()
    state = {
        key: value
        for key, value in kind.from_imagenet(content).items()
        if key in own or not key.endswith("num_batches_tracked")
    }
    wrong = [k for k, v in own.items() if k in state and state[k].shape != v.shape]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    if wrong or missing or extra:
        raise CheckpointError(
            f"{path}: does not fit {kind.title(network.config)}: {len(missing)} keys missing, "
            f"{len(extra)} too many, {len(wrong)} of another shape"
        )
    check_values(path, state, own)
    network.backbone.load_state_dict(state, strict=False)


# Retrofit: an NMS-based detector learns to do without, by training one new head.

SMALL_EPOCHS = 12  # of nano's kin; the others take a third of their recipe's epochs


@dataclass(frozen=True)
class Retrofit:
    """A network whose o2o head is to be trained on a finished o2m detector."""

    # The finished detector with a new o2o head, a copy of the o2m head; a max filter of its own
    # changes nothing yet.
    network: Fcos
    preset: Preset  # its configuration and a recipe for the new head
    heads: tuple[HeadName, ...]  # those that are trained


def retrofit(
    path: Path, class_names: tuple[str, ...], unfreeze: bool, frozen_stages: int | None = None
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
    # fcos_rt_nano → fcos_e2e_nano, fcos_rt_r18_3x → fcos_e2e_r18, as the presets are called.
    name = model.name.replace("_rt_", "_e2e_").removesuffix("_3x")
    like = preset(name).model if name in PRESETS else ModelConfig(name, 1, ("o2o",))
    return replace(
        model,
        name=name,
        heads=("o2m", "o2o"),
        frozen_stages=model.frozen_stages if frozen_stages is None else frozen_stages,
        max_filter=like.max_filter,
        dedup_iou=like.dedup_iou,
        deployed_dedup_iou=like.deployed_dedup_iou,
    )


def _recipe(config: ModelConfig, input_size: tuple[int, int], unfreeze: bool) -> Preset:
    """The recipe of the preset of this name, or that for ResNet-18, shortened.

    The o2m head is finished: the o2o head starts at once, and reaches the rest if that is trained.
    """
    name = config.name if config.name in PRESETS else "fcos_e2e_r18"
    recipe = at_size(preset(name, config.num_classes), input_size).train
    is_small = name.endswith(("nano", "small", "lite0"))
    epochs = SMALL_EPOCHS if is_small else max(1, recipe.epochs // 3)
    recipe = replace(recipe, o2o_start=0.0)
    if unfreeze:
        recipe = replace(recipe, o2o_gradient=1.0)
    return with_epochs(Preset(config, recipe, input_size), epochs)

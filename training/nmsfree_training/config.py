"""Frozen settings, and presets: functions that return them.

A field with an `Option` is an option of `nmsfree train` as well, whose default is the preset's
value. A new one is a line here, and its use.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

from msgspec import Meta

from nmsfree.errors import InputError
from nmsfree.options import Option, check_bounds
from nmsfree.text import one_of

BackboneName = Literal["resnet", "lite0"]
HeadName = Literal["o2m", "o2o"]
HeadNorm = Literal["group", "batch", "batch_per_level"]
MaxFilter = Literal["none", "logits", "features"]

GROUPS = 32  # of group norm
MAX_CLASSES = 20_000
MAX_EPOCHS = 1_000_000  # more of them are a slip of the finger
MAX_SIDE = 16384  # pixels
DEFAULT_MODEL = "fcos_e2e_nano"
MIN_STEPS = 1000  # optimizer steps below which a network has hardly begun

STRIDES = (8, 16, 32)  # of the three pyramid levels P3, P4, P5

_RECIPE = partial(Option, panel="Recipe (instead of the preset's)")
_PICTURE = partial(Option, panel="Augmentation (instead of the preset's)")
HEADS = partial(Option, panel="NMS-free head (instead of the preset's)")
_PICTURE_SHARE, _HEADS_SHARE = (partial(kind, min=0, max=1) for kind in (_PICTURE, HEADS))


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str
    num_classes: Annotated[int, Meta(ge=1, le=MAX_CLASSES)]
    # Which heads exist; at deployment one is kept, "o2o" if there is one.
    heads: Annotated[tuple[HeadName, ...], Meta(min_length=1, max_length=2)]
    backbone: BackboneName = "resnet"  # see `model/backbones`
    # depth, width: of a ResNet; width are the channels of its stem, 64 in the standard network.
    depth: Literal[18, 34, 50] = 18
    width: Annotated[int, Meta(ge=1, le=512)] = 64
    frozen_norm: Annotated[
        bool,
        _RECIPE(
            "The backbone's batch norms keep the statistics and weights they start with.",
            flags=("--freeze-norms/--train-norms",),
        ),
    ] = True
    frozen_stages: Annotated[
        int,
        _RECIPE(
            "Backbone parts not trained: 1 = stem, 2 = and layer1 … 5.",
            flags=("--freeze",),
            min=0,
            max=5,
        ),
    ] = 2
    channels: Annotated[int, Meta(ge=1, le=2048)] = 256  # of the FPN and of the head
    # 3×3 convolutions before the prediction, in each of the two branches.
    head_convs: Annotated[int, Meta(ge=0, le=64)] = 4
    # "group" (32 groups), "batch" (one for all levels), "batch_per_level".
    head_norm: Annotated[HeadNorm, _RECIPE("group, batch or batch_per_level.")] = "group"
    # max_filter, dedup_iou, deployed_dedup_iou: of the o2o head, see `model/filters.py`; deployed 0
    # = as in training.
    max_filter: Annotated[MaxFilter, HEADS("3-D max filter: none, or on logits or features.")] = (
        "none"
    )
    dedup_iou: Annotated[
        float,
        _HEADS_SHARE(
            "Cells give way to better neighbours whose boxes agree by this IoU; 0 = off.",
            was="rival_iou",
        ),
    ] = 0.0
    deployed_dedup_iou: Annotated[
        float,
        _HEADS_SHARE(
            "The same once trained: lower leaves fewer duplicates, and fewer close pairs.",
            was="deployed_rival_iou",
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.head_norm == "group" and self.channels % GROUPS:
            raise InputError(
                f"channels is {self.channels}, expected a multiple of {GROUPS} (group norm)"
            )

    @property
    def deployed_head(self) -> HeadName:
        """The head that is kept for inference, unless another is asked for."""
        return "o2o" if "o2o" in self.heads else "o2m"


@dataclass(frozen=True)
class Matching:
    """How cells are assigned to objects."""

    topk: int  # how many of the largest IoUs of an object are summed to k, its number of cells
    # (powers of score and IoU) of POTO's matching quality; None = the published cost.
    quality: tuple[float, float] | None = None
    # Every object gets one cell of its own, at the least sum of costs; otherwise a cell that
    # several objects claim goes to one of them, and the others may get none.
    hungarian: bool = False

    def __post_init__(self) -> None:
        if self.quality is not None and not all(0 <= power <= 20 for power in self.quality):
            a, b = self.quality
            raise InputError(f"a matching's quality is {a} {b}, expected two powers of 0 … 20")


@dataclass(frozen=True)
class TrainConfig:
    """The recipe; None is off."""

    epochs: Annotated[int, Option("Passes over the data.", min=1, max=MAX_EPOCHS)]
    optimizer: Annotated[Literal["sgd", "adamw"], _RECIPE("sgd or adamw.")]
    # For a batch of 16 images; scaled linearly with the batch (SGD only).
    learning_rate: Annotated[float, _RECIPE("Peak rate; for SGD per 16 images of a batch.")]
    weight_decay: Annotated[float, _RECIPE("Decay of the weights.", min=0)]
    # "step" multiplies by 0.1 after each of `milestones` (epochs); "cosine" to zero.
    schedule: Annotated[Literal["step", "cosine"], _RECIPE("step or cosine.")]
    milestones: Annotated[
        tuple[int, ...],
        _RECIPE("Epochs after which a step schedule divides by ten.", metavar="24,33"),
    ] = ()
    # min_steps: a small set gets more epochs, unless the user says how many.
    min_steps: Annotated[
        int,
        _RECIPE(
            "Fewest steps of a run: a small set gets more epochs where --epochs is not given.",
            min=0,
            max=2**31 - 1,
        ),
    ] = MIN_STEPS
    momentum: float = 0.9
    # backbone_rate, backbone_start: where the backbone is trained already and the rest is new.
    backbone_rate: Annotated[
        float, _RECIPE("Learning rate of the backbone, as a share of the others'.", min=0, max=1)
    ] = 1.0
    backbone_start: Annotated[
        float, _RECIPE("Share of the run before the backbone is trained, too.", min=0, max=1)
    ] = 0.0
    # warmup_iterations, warmup_factor: linear warm-up from learning_rate × factor.
    warmup_iterations: Annotated[
        int, _RECIPE("Steps of linear warm-up.", flags=("--warmup",), min=0, max=2**31 - 1)
    ] = 500
    warmup_factor: float = 0.00066667
    clip_norm: Annotated[float | None, _RECIPE("Largest gradient norm; 0 = off.", min=0)] = None
    # Images of one optimizer step, all processes and `accumulate` parts together.
    batch_size: Annotated[
        int, Option("Images of a step, all processes together.", min=1, max=65536)
    ] = 16
    # Each part divides its losses by its own objects, so the sum differs a little from the whole's.
    accumulate: Annotated[
        int, _RECIPE("Cut each batch into parts, to save memory.", min=1, max=65536)
    ] = 1
    # The averaged weights are those that are evaluated and deployed.
    ema: Annotated[
        float | None, _RECIPE("Decay of averaged weights, as 0.999; 0 = off.", min=0, max=1)
    ] = None
    flip: Annotated[float, _PICTURE_SHARE("Probability of a mirror image.")] = 0.0
    # short_sides, long_side: multi-scale resize, in pixels; empty = fit the model's input.
    short_sides: Annotated[
        tuple[int, ...],
        _PICTURE("Short sides to draw from, in pixels.", min=32, max=MAX_SIDE, metavar="256,288,…"),
    ] = ()
    long_side: Annotated[int, _PICTURE("Limit of the long side.", min=32, max=MAX_SIDE)] = 0
    # (low, high) of a random factor on the resize above; (1, 1) = off.
    scale: Annotated[
        tuple[float, float], _PICTURE("Random zoom.", min=0.05, max=8, metavar="LOW HIGH")
    ] = (1.0, 1.0)
    crop: Annotated[
        float | None, _PICTURE("Random crop, share of the input's side; 0 = off.", min=0, max=4)
    ] = None
    color_jitter: Annotated[float, _PICTURE_SHARE("Strength of random colours, 0 … 1.")] = 0.0
    mosaic: Annotated[float, _PICTURE_SHARE("Probability of four images in one.")] = 0.0
    mixup: Annotated[float, _PICTURE_SHARE("Probability of two images blended.")] = 0.0
    plain_epochs: Annotated[
        int, _PICTURE("Last epochs without mosaic and mixup.", min=0, max=MAX_EPOCHS)
    ] = 0
    # o2m, o2o: how the cells of each head are assigned.
    o2m: Matching = Matching(topk=13)
    o2o: Matching = Matching(topk=1)
    # With two heads; 0 = it stops at the FPN, as published.
    o2o_gradient: Annotated[
        float, _HEADS_SHARE("Share of its gradient that trains backbone and neck too, 0 … 1.")
    ] = 0.0
    dedup_start: Annotated[float, HEADS("First strength of the duplicate filter.", min=0)] = 0.0
    # With two heads, linearly.
    o2m_weight_end: Annotated[
        float, _HEADS_SHARE("The one-to-many losses' weight falls from 1 to this.")
    ] = 1.0
    # With two heads; the o2o head then starts as a copy of the other.
    o2o_start: Annotated[
        float, _HEADS_SHARE("Share of the epochs that train the one-to-many head alone.")
    ] = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.learning_rate <= 0:
            raise InputError(f"learning rate is {self.learning_rate}, expected a number above 0")
        if self.ema == 1:
            raise InputError("ema is 1, expected 0 (off) … below 1, for example 0.999")
        if self.crop is not None and self.crop < 0.05:
            raise InputError(f"crop is {self.crop}, expected 0 (off), or 0.05 … 4")
        if self.scale[0] > self.scale[1]:
            raise InputError(f"scale is {self.scale[0]} {self.scale[1]}, expected LOW ≤ HIGH")


@dataclass(frozen=True)
class Preset:
    """A network, its recipe, and the size (height, width) of its deployed input in pixels."""

    model: ModelConfig
    train: TrainConfig
    input_size: tuple[int, int]
    starts_from: str = "random"  # or --init; for `nmsfree train --list`


def with_epochs(preset: Preset, epochs: int) -> Preset:
    """The same schedule over another number of epochs."""
    recipe = preset.train
    share = epochs / recipe.epochs
    recipe = replace(
        recipe,
        epochs=epochs,
        milestones=tuple(round(milestone * share) for milestone in recipe.milestones),
        plain_epochs=round(recipe.plain_epochs * share),
    )
    return replace(preset, train=recipe)


def with_enough_steps(preset: Preset, images: int) -> Preset:
    """The same with as many epochs as `min_steps` takes on so many images."""
    per_epoch = max(1, images // min(preset.train.batch_size, max(1, images)))
    needed = -(-preset.train.min_steps // per_epoch)
    return with_epochs(preset, needed) if needed > preset.train.epochs else preset


def at_size(preset: Preset, size: tuple[int, int]) -> Preset:
    """The same for another input size (height, width); multi-scale sides follow.

    Raises:
        InputError: a side is no multiple of the coarsest stride.
    """
    if any(side < STRIDES[-1] or side % STRIDES[-1] or side > MAX_SIDE for side in size):
        raise InputError(
            f"size is {size[0]} {size[1]}, expected height and width, multiples of {STRIDES[-1]}, "
            f"at most {MAX_SIDE}"
        )
    factor, recipe = min(size) / min(preset.input_size), preset.train
    recipe = replace(
        recipe,
        short_sides=tuple(max(32, round(side * factor)) for side in recipe.short_sides),
        long_side=max(max(size), round(recipe.long_side * factor)) if recipe.long_side else 0,
    )
    return replace(preset, train=recipe, input_size=size)


Heads = tuple[HeadName, ...]
Family = Callable[[str, Heads, int], Preset]  # name, heads, number of classes


def _r18_3x(name: str, heads: Heads, num_classes: int) -> Preset:
    """The published recipe: SGD, 36 epochs, frozen batch norm, stem and layer1 not trained."""
    return Preset(
        model=ModelConfig(name=name, num_classes=num_classes, heads=heads),
        train=TrainConfig(
            epochs=36,
            optimizer="sgd",
            learning_rate=0.01,
            weight_decay=1e-4,
            schedule="step",
            milestones=(24, 33),
            short_sides=tuple(range(256, 609, 32)),
            long_side=900,
            flip=0.5,
        ),
        input_size=(512, 736),
        starts_from="--imagenet resnet18",
    )


def _nano(name: str, heads: Heads, num_classes: int) -> Preset:
    """For CPUs and the edge: a quarter of ResNet-18's width, 64 channels, 2 + 2 convs; 0.44 GMAC.

    One batch norm per level rather than one for all: AP on digits val after 6 epochs, shared →
    per level, was 46.4 → 47.3 and 41.2 → 46.6 with two heads (seeds 0, 1) and 49.4 → 48.9 for o2m +
    NMS (seed 0). The price is three folded copies of the head's convolutions, 1.2 MB; the
    multiply-adds are the same. `nmsfree train --head-norm batch --epochs 6 --precision bf16`
    gives the other column.
    """
    return Preset(
        model=ModelConfig(
            name=name,
            num_classes=num_classes,
            heads=heads,
            width=16,
            frozen_norm=False,
            frozen_stages=0,
            channels=64,
            head_convs=2,
            head_norm="batch_per_level",
        ),
        train=TrainConfig(
            epochs=40,
            optimizer="adamw",
            learning_rate=2e-3,
            weight_decay=0.05,
            schedule="cosine",
            warmup_iterations=100,
            warmup_factor=0.01,
            clip_norm=10.0,
            crop=0.875,
            color_jitter=0.3,
        ),
        input_size=(256, 256),
    )


def _small(name: str, heads: Heads, num_classes: int) -> Preset:
    """Between nano and ResNet-18: half of its width, 96 channels, 2 + 2 convs."""
    nano = _nano(name, heads, num_classes)
    return replace(nano, model=replace(nano.model, width=32, channels=96), input_size=(416, 416))


def _lite0(name: str, heads: Heads, num_classes: int) -> Preset:
    """EfficientNet-Lite0 with nano's neck and head; made for INT8."""
    nano = _nano(name, heads, num_classes)
    return replace(
        nano,
        model=replace(nano.model, backbone="lite0"),
        input_size=(416, 416),
        starts_from="--imagenet lite0",
    )


def _not_worse(family: Family, name: str, heads: Heads, num_classes: int) -> Preset:
    """The two-headed recipe that is not worse than NMS: `dedup_hungarian` of the study.

    Against the published one: the o2o head's gradient reaches FPN and backbone, every object gets
    a cell of its own, and a cell gives way to a better neighbour that shows the same box.
    docs/nms-free-training.md has the figures.
    """
    plain = family(name, heads, num_classes)
    return replace(
        plain,
        model=replace(plain.model, dedup_iou=0.78, deployed_dedup_iou=0.76),
        train=replace(plain.train, o2o=Matching(topk=1, hungarian=True), o2o_gradient=1.0),
    )


_RT: Heads = ("o2m",)  # needs NMS
_O2O: Heads = ("o2o",)  # the same network, trained one-to-one: no NMS
_E2E: Heads = ("o2m", "o2o")  # the o2o head is deployed
PRESETS: dict[str, tuple[Family, Heads]] = {
    # As published; with both heads, the o2o head reads detached features.
    "fcos_rt_r18_3x": (_r18_3x, _RT),
    "fcos_o2o_r18_3x": (_r18_3x, _O2O),
    "fcos_e2e_r18_3x": (_r18_3x, _E2E),
    "fcos_e2e_r18": (partial(_not_worse, _r18_3x), _E2E),
    "fcos_rt_nano": (_nano, _RT),
    "fcos_o2o_nano": (_nano, _O2O),
    "fcos_e2e_nano": (partial(_not_worse, _nano), _E2E),
    "fcos_rt_small": (_small, _RT),
    "fcos_o2o_small": (_small, _O2O),
    "fcos_e2e_small": (partial(_not_worse, _small), _E2E),
    "fcos_rt_lite0": (_lite0, _RT),
    "fcos_o2o_lite0": (_lite0, _O2O),
    "fcos_e2e_lite0": (partial(_not_worse, _lite0), _E2E),
}


def preset(name: str, num_classes: int = 80) -> Preset:
    """Return a preset by name.

    Raises:
        InputError: no preset has this name.
    """
    if name not in PRESETS:
        raise InputError(f"model {name!r} is unknown, expected {one_of(PRESETS, name)}")
    family, heads = PRESETS[name]
    return family(name, heads, num_classes)

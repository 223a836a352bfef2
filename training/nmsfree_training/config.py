"""Frozen settings, and presets: functions that return them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from msgspec import Meta

from nmsfree.decode import Share
from nmsfree.errors import InputError

HeadName = Literal["o2m", "o2o"]
HeadNorm = Literal["group", "batch", "batch_per_level"]
MaxFilter = Literal["none", "logits", "features"]

GROUPS = 32  # of group norm
MAX_CLASSES = 20_000

STRIDES = (8, 16, 32)  # of the three pyramid levels P3, P4, P5


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        depth: ResNet-18, 34 or 50.
        width: channels of the ResNet's stem; 64 is the standard network.
        frozen_norm: backbone batch norm uses fixed statistics and weights.
        frozen_stages: leading parts that are not trained; 1 = stem, 2 = stem and layer1.
        channels: of the FPN and of the head.
        head_convs: 3×3 convolutions before the prediction, in each of the two branches.
        head_norm: "group" (32 groups), "batch" (one for all levels), "batch_per_level".
        heads: which heads exist; at deployment one is kept, "o2o" if there is one.
        max_filter: of the o2o head: a 3-D max filter on its class logits or on the features
            before them, see `max_filter.py`.
        rival_iou: of the o2o head: a cell gives way to a better neighbour whose box has this IoU or
            more with its own, see `rival_filter.py`; 0 = no such filter.
        deployed_rival_iou: the same once the network is trained; 0 = as in training. A lower one
            leaves fewer duplicates, and fewer of two objects that overlap by as much.
    """

    name: str
    num_classes: Annotated[int, Meta(ge=1, le=MAX_CLASSES)]
    heads: Annotated[tuple[HeadName, ...], Meta(min_length=1, max_length=2)]
    depth: Literal[18, 34, 50] = 18
    width: Annotated[int, Meta(ge=1, le=512)] = 64
    frozen_norm: bool = True
    frozen_stages: Annotated[int, Meta(ge=0, le=5)] = 2
    channels: Annotated[int, Meta(ge=1, le=2048)] = 256
    head_convs: Annotated[int, Meta(ge=0, le=64)] = 4
    head_norm: HeadNorm = "group"
    max_filter: MaxFilter = "none"
    rival_iou: Share = 0.0
    deployed_rival_iou: Share = 0.0

    def __post_init__(self) -> None:
        if self.head_norm == "group" and self.channels % GROUPS:
            raise InputError(
                f"channels is {self.channels}, expected a multiple of {GROUPS} (group norm)"
            )


@dataclass(frozen=True)
class Matching:
    """How cells are assigned to objects.

    Attributes:
        topk: how many of the largest IoUs of an object are summed to k, its number of cells.
        quality: (powers of score and IoU) of POTO's matching quality; None = the published cost.
        hungarian: every object gets one cell of its own, at the least sum of costs; otherwise a
            cell that several objects claim goes to one of them, and the others may get none.
    """

    topk: int
    quality: tuple[float, float] | None = None
    hungarian: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """The recipe.

    Attributes:
        learning_rate: for a batch of 16 images; scaled linearly with the batch (SGD only).
        schedule: "step" multiplies by 0.1 after each of `milestones` (epochs); "cosine" to zero.
        warmup_iterations, warmup_factor: linear warm-up from learning_rate × factor.
        short_sides, long_side: multi-scale resize, in pixels; empty = fit the model's input.
        crop: side of a random crop as a share of the model's input; None = whole image.
        flip: probability of a horizontal flip.
        clip_norm: gradients of a larger norm are scaled down to it; None = off.
        color_jitter: strength of random brightness, contrast, saturation and hue; 0 = off.
        scale: (low, high) of a random factor on the resize above; (1, 1) = off.
        mosaic: probability that an example is made of four images.
        mixup: probability that an example is blended with another one.
        plain_epochs: mosaic and mixup are off in this many last epochs.
        batch_size: images of one optimizer step, all processes and `accumulate` parts together.
        accumulate: parts that a batch is cut into, one after the other, to save memory. Each part
            divides its losses by its own objects, so the sum differs a little from the whole's.
        o2m, o2o: how the cells of each head are assigned.
        o2o_gradient: with two heads, the share of the o2o head's gradient that reaches the FPN and
            the backbone; 0 = it stops there, as published.
        o2m_weight_end: with two heads, the weight of the o2m losses falls linearly from 1 to this.
        o2o_start: with two heads, the share of the epochs in which only the o2m head is trained;
            the o2o head then starts as a copy of it.
        ema: decay per step of the averaged weights that are evaluated and deployed; None = off.
    """

    epochs: int
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    weight_decay: float
    schedule: Literal["step", "cosine"]
    milestones: tuple[int, ...] = ()
    momentum: float = 0.9
    warmup_iterations: int = 500
    warmup_factor: float = 0.00066667
    clip_norm: float | None = None
    batch_size: int = 16
    short_sides: tuple[int, ...] = ()
    long_side: int = 0
    crop: float | None = None
    flip: float = 0.0
    color_jitter: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    mosaic: float = 0.0
    mixup: float = 0.0
    plain_epochs: int = 0
    accumulate: int = 1
    ema: float | None = None
    o2m: Matching = Matching(topk=13)
    o2o: Matching = Matching(topk=1)
    o2o_gradient: float = 0.0
    o2m_weight_end: float = 1.0
    o2o_start: float = 0.0


@dataclass(frozen=True)
class Preset:
    """A network, its recipe, and the size (height, width) of its deployed input in pixels."""

    model: ModelConfig
    train: TrainConfig
    input_size: tuple[int, int]


def _r18_3x(name: str, heads: tuple[HeadName, ...], num_classes: int) -> Preset:
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
    )


def _nano(name: str, heads: tuple[HeadName, ...], num_classes: int) -> Preset:
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


def _losing_nothing(name: str, plain: Preset) -> Preset:
    """The two-headed recipe that loses nothing to NMS: `rival_hungarian` of the study.

    Against the published one: the o2o head's gradient reaches FPN and backbone, every object gets
    a cell of its own, and a cell gives way to a better neighbour that shows the same box.
    docs/nms-free-training.md has the figures.
    """
    return replace(
        plain,
        model=replace(plain.model, name=name, rival_iou=0.78, deployed_rival_iou=0.76),
        train=replace(plain.train, o2o=Matching(topk=1, hungarian=True), o2o_gradient=1.0),
    )


def fcos_rt_r18_3x(num_classes: int = 80) -> Preset:
    """Published one-to-many detector; needs NMS."""
    return _r18_3x("fcos_rt_r18_3x", ("o2m",), num_classes)


def fcos_o2o_r18_3x(num_classes: int = 80) -> Preset:
    """Published detector of the same network, trained one-to-one; no NMS."""
    return _r18_3x("fcos_o2o_r18_3x", ("o2o",), num_classes)


def fcos_e2e_r18_3x(num_classes: int = 80) -> Preset:
    """Published two-headed detector; the o2o head reads detached features and is deployed."""
    return _r18_3x("fcos_e2e_r18_3x", ("o2m", "o2o"), num_classes)


def fcos_e2e_r18(num_classes: int = 80) -> Preset:
    """The published network and schedule with the two-headed recipe that loses nothing to NMS."""
    return _losing_nothing("fcos_e2e_r18", fcos_e2e_r18_3x(num_classes))


def fcos_rt_nano(num_classes: int = 80) -> Preset:
    """Small one-to-many detector; needs NMS."""
    return _nano("fcos_rt_nano", ("o2m",), num_classes)


def fcos_o2o_nano(num_classes: int = 80) -> Preset:
    """Small detector trained one-to-one; no NMS."""
    return _nano("fcos_o2o_nano", ("o2o",), num_classes)


def fcos_e2e_nano(num_classes: int = 80) -> Preset:
    """Small two-headed detector that loses nothing to NMS."""
    plain = _nano("fcos_e2e_nano", ("o2m", "o2o"), num_classes)
    return _losing_nothing(plain.model.name, plain)


PRESETS: dict[str, Callable[..., Preset]] = {
    f.__name__: f
    for f in (
        fcos_rt_r18_3x,
        fcos_o2o_r18_3x,
        fcos_e2e_r18_3x,
        fcos_e2e_r18,
        fcos_rt_nano,
        fcos_o2o_nano,
        fcos_e2e_nano,
    )
}


def preset(name: str, num_classes: int = 80) -> Preset:
    """Return a preset by name.

    Raises:
        InputError: no preset has this name.
    """
    if name not in PRESETS:
        raise InputError(f"model {name!r} is unknown, expected one of: {', '.join(PRESETS)}")
    return PRESETS[name](num_classes)

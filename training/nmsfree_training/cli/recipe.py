"""Options that replace a preset's values."""

import math
from dataclasses import dataclass, fields, replace

from nmsfree.decode import whole_number
from nmsfree.errors import InputError
from nmsfree_training.config import Matching, Preset

CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("step", "cosine"),
    "head_norm": ("group", "batch", "batch_per_level"),
    "max_filter": ("none", "logits", "features"),
    "o2o_matching": ("argmin", "hungarian"),
}
SHARES = (
    *("flip", "mosaic", "mixup", "color_jitter"),
    *("o2o_gradient", "o2m_weight_end", "o2o_start", "rival_iou", "deployed_rival_iou"),
)
MODEL_FIELDS = ("head_norm", "frozen_stages", "max_filter", "rival_iou", "deployed_rival_iou")
MATCHING_OPTIONS = ("o2o_matching", "o2o_quality", "o2m_quality")
MAX_SIDE = 16384  # pixels
FILTERS = ("max_filter", "rival_iou", "deployed_rival_iou")
TWO_HEADED = ("o2o_gradient", "o2m_weight_end", "o2o_start")


@dataclass(frozen=True)
class RecipeOptions:
    """Values given by the user; None leaves the preset's. Names are those of the settings."""

    epochs: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    milestones: tuple[int, ...] | None = None
    warmup_iterations: int | None = None
    clip_norm: float | None = None
    ema: float | None = None
    head_norm: str | None = None
    frozen_stages: int | None = None
    flip: float | None = None
    short_sides: tuple[int, ...] | None = None
    long_side: int | None = None
    scale: tuple[float, float] | None = None
    crop: float | None = None
    color_jitter: float | None = None
    mosaic: float | None = None
    mixup: float | None = None
    plain_epochs: int | None = None
    o2o_gradient: float | None = None
    o2o_matching: str | None = None
    o2o_quality: tuple[float, float] | None = None
    o2m_quality: tuple[float, float] | None = None
    o2m_weight_end: float | None = None
    o2o_start: float | None = None
    max_filter: str | None = None
    rival_iou: float | None = None
    deployed_rival_iou: float | None = None

    def apply(self, chosen: Preset) -> Preset:
        """Return the preset with these values.

        Raises:
            InputError: a value that makes no sense.
        """
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        self._check(given)
        self._check_heads(given, chosen)
        # 0 switches off what None switches off in a recipe.
        given |= {name: None for name in ("clip_norm", "crop", "ema") if given.get(name) == 0}
        model = {name: given.pop(name) for name in MODEL_FIELDS if name in given}
        if "rival_iou" in model:  # the preset's belongs to another
            model.setdefault("deployed_rival_iou", 0.0)
        given |= self._matchings(chosen)
        given = {name: value for name, value in given.items() if name not in MATCHING_OPTIONS}
        if "short_sides" in given and "long_side" not in given and not chosen.train.long_side:
            given["long_side"] = 2 * max(given["short_sides"])
        if given.get("schedule") == "step" and not (self.milestones or chosen.train.milestones):
            epochs = given.get("epochs", chosen.train.epochs)
            given["milestones"] = (epochs * 2 // 3, epochs * 11 // 12)  # as in the "3x" schedule
        return replace(
            chosen,
            model=replace(chosen.model, **model),
            train=replace(chosen.train, **given),
        )

    def _matchings(self, chosen: Preset) -> dict[str, Matching]:
        """The settings of both heads' assignment; qualities "0 0" stand for the published cost."""
        o2m, o2o = chosen.train.o2m, chosen.train.o2o
        if self.o2m_quality is not None:
            o2m = replace(o2m, quality=self.o2m_quality if any(self.o2m_quality) else None)
        if self.o2o_quality is not None:
            o2o = replace(o2o, quality=self.o2o_quality if any(self.o2o_quality) else None)
        if self.o2o_matching is not None:
            o2o = replace(o2o, hungarian=self.o2o_matching == "hungarian")
        return {"o2m": o2m, "o2o": o2o}

    def _check_heads(self, given: dict[str, object], chosen: Preset) -> None:
        """Refuse what would have no effect on the heads of this model."""
        heads, name = chosen.model.heads, chosen.model.name
        for option in given:
            if option in TWO_HEADED and len(heads) < 2:
                raise InputError(
                    f"{_option(option)} is given, but {name} has one head: choose a two-headed "
                    "model (fcos_e2e_…)"
                )
            head = "o2m" if option == "o2m_quality" else "o2o"
            needs = option in (*MATCHING_OPTIONS, *FILTERS)
            if needs and head not in heads:
                raise InputError(f"{_option(option)} is given, but {name} has no {head} head")

    def _check(self, given: dict[str, object]) -> None:
        rate = self.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise InputError(f"learning rate is {rate}, expected a number above 0")
        for name, value in given.items():
            if name in CHOICES and value not in CHOICES[name]:
                raise InputError(
                    f"{_option(name)} is {value!r}, expected {', '.join(CHOICES[name])}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{_option(name)} is {value}, expected a finite number")
            if name in SHARES and not 0 <= float(value) <= 1:  # type: ignore[arg-type]
                raise InputError(f"{_option(name)} is {value}, expected 0 … 1")
        for name in ("o2o_quality", "o2m_quality"):
            powers = given.get(name)
            if isinstance(powers, tuple) and not all(0 <= p <= 20 for p in powers):
                raise InputError(
                    f"{_option(name)} is {powers[0]} {powers[1]}, expected two powers of 0 … 20"
                )
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"--ema is {self.ema}, expected 0 (off) … below 1, for example 0.999")
        for name in ("weight_decay", "clip_norm", "crop"):
            if name in given and float(given[name]) < 0:  # type: ignore[arg-type]
                raise InputError(f"{_option(name)} is {given[name]}, expected 0 or more")
        if self.crop and not 0.05 <= self.crop <= 4:
            raise InputError(
                f"--crop is {self.crop}, expected 0 (off), or a share of the input's side of "
                "0.05 … 4"
            )
        if self.scale is not None and not 0.05 <= self.scale[0] <= self.scale[1] <= 8:
            raise InputError(
                f"--scale is {self.scale[0]} {self.scale[1]}, expected LOW ≤ HIGH within 0.05 … 8"
            )
        sides = self.short_sides
        if sides is not None and not 32 <= min(sides) <= max(sides) <= MAX_SIDE:
            raise InputError(
                f"--short-sides has {min(sides)} … {max(sides)}, expected 32 … {MAX_SIDE} pixels"
            )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def whole_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Read "24,33"; None stays None.

    Raises:
        InputError: something else than whole numbers between commas.
    """
    if text is None:
        return None
    numbers = [whole_number(part.strip()) for part in text.split(",")]
    if None in numbers:
        raise InputError(f"{option} is {text!r}, expected whole numbers as in 24,33")
    return tuple(number for number in numbers if number is not None)

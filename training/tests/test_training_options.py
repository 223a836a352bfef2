"""Options on the command line replace a preset's values, and say what is wrong with them."""

from dataclasses import replace
from typing import Any

import pytest

from nmsfree.errors import InputError
from nmsfree_training.cli.train import RecipeOptions, apply, whole_numbers
from nmsfree_training.config import Matching, preset

NANO = preset("fcos_e2e_nano", 10)


def test_values_replace_those_of_the_preset() -> None:
    assert apply(RecipeOptions(), NANO) == NANO
    options = RecipeOptions(epochs=7, mosaic=0.5, frozen_stages=3, head_norm="group", ema=0.99)
    changed = apply(options, NANO)
    assert (changed.train.epochs, changed.train.mosaic, changed.train.ema) == (7, 0.5, 0.99)
    assert (changed.model.frozen_stages, changed.model.head_norm) == (3, "group")
    assert changed.train.learning_rate == NANO.train.learning_rate


def test_options_of_the_heads_reach_the_preset() -> None:
    changed = apply(
        RecipeOptions(
            o2o_gradient=0.25,
            o2o_matching="hungarian",
            o2o_quality=(0.2, 0.8),
            o2m_quality=(0.5, 2.0),
            o2m_weight_end=0.1,
            o2o_start=0.5,
            max_filter="logits",
        ),
        NANO,
    )
    assert changed.train.o2o == Matching(topk=1, quality=(0.2, 0.8), hungarian=True)
    assert changed.train.o2m == Matching(topk=13, quality=(0.5, 2.0))
    assert changed.model.max_filter == "logits"
    recipe = changed.train
    assert (recipe.o2o_gradient, recipe.o2m_weight_end, recipe.o2o_start) == (0.25, 0.1, 0.5)
    back = RecipeOptions(
        o2o_gradient=0.0,
        o2o_matching="argmin",
        o2o_quality=(0.0, 0.0),
        o2m_quality=(0.0, 0.0),
        o2m_weight_end=1.0,
        o2o_start=0.0,
        max_filter="none",
    )
    plain = {"o2o": Matching(topk=1), "o2m": Matching(topk=13), "o2o_gradient": 0.0}
    plain |= {"o2m_weight_end": 1.0, "o2o_start": 0.0}
    assert apply(back, changed) == replace(
        NANO,
        model=replace(NANO.model, max_filter="none"),
        train=replace(NANO.train, **plain),
    )


@pytest.mark.parametrize(
    ("options", "name", "complaint"),
    [
        ({"o2o_gradient": 0.5}, "fcos_o2o_nano", "--o2o-gradient is given, but fcos_o2o_nano has"),
        ({"o2m_weight_end": 0.5}, "fcos_rt_nano", "--o2m-weight-end is given, but fcos_rt_nano"),
        ({"o2o_start": 0.5}, "fcos_rt_nano", "has one head: choose a two-headed model"),
        ({"o2o_matching": "argmin"}, "fcos_rt_nano", "fcos_rt_nano has no o2o head"),
        ({"o2o_quality": (0.2, 0.8)}, "fcos_rt_nano", "--o2o-quality is given, but fcos_rt_nano"),
        ({"o2m_quality": (0.2, 0.8)}, "fcos_o2o_nano", "fcos_o2o_nano has no o2m head"),
        (
            {"max_filter": "logits"},
            "fcos_rt_nano",
            "--max-filter is given, but fcos_rt_nano has no",
        ),
    ],
)
def test_options_for_heads_that_are_not_there(
    options: dict[str, Any], name: str, complaint: str
) -> None:
    with pytest.raises(InputError) as caught:
        apply(RecipeOptions(**options), preset(name, 10))
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_zero_switches_off() -> None:
    changed = apply(RecipeOptions(clip_norm=0.0, crop=0.0, ema=0.0), NANO)
    assert (changed.train.clip_norm, changed.train.crop, changed.train.ema) == (None,) * 3


def test_what_goes_together_is_filled_in() -> None:
    step = apply(RecipeOptions(schedule="step", epochs=36), NANO)
    assert step.train.milestones == (24, 33)
    sides = apply(RecipeOptions(short_sides="256,320"), NANO)
    assert sides.train.long_side == 640
    published = apply(RecipeOptions(short_sides="256,320"), preset("fcos_rt_r18_3x"))
    assert published.train.long_side == 900


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"optimizer": "adam"}, "optimizer is 'adam', expected sgd, adamw"),
        ({"o2o_matching": "greedy"}, "o2o matching is 'greedy', expected argmin, hungarian"),
        ({"max_filter": "boxes"}, "max_filter is 'boxes', expected none, logits, features"),
        ({"learning_rate": 0.0}, "learning rate is 0.0, expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, expected a finite number"),
        ({"weight_decay": float("inf")}, "weight_decay is inf, expected 0 to inf"),
        ({"mosaic": 1.5}, "mosaic is 1.5, expected 0 to 1"),
        ({"dedup_iou": -0.1}, "dedup_iou is -0.1, expected 0 to 1"),
        ({"ema": 1.0}, "ema is 1, expected 0 (off) … below 1"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0, expected 0 to inf"),
        ({"scale": (2.0, 1.0)}, "expected LOW ≤ HIGH"),
        ({"scale": (1e-320, 1.0)}, "expected 0.05 to 8"),
        ({"short_sides": f"64,{10**8}"}, "short_sides is 100000000, expected 32 to 16384"),
        ({"crop": 1e-320}, "crop is 1e-320, expected 0 (off), or 0.05 … 4"),
        ({"crop": 4.1}, "crop is 4.1, expected 0 to 4"),
        ({"o2o_quality": (-1.0, 1.0)}, "quality is -1.0 1.0, expected two powers of 0 … 20"),
        ({"o2m_quality": (0.5, float("nan"))}, "quality is 0.5 nan, expected two"),
    ],
)
def test_values_that_make_no_sense(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        apply(RecipeOptions(**options), NANO)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_lists_of_numbers() -> None:
    assert whole_numbers("milestones", "24,33") == (24, 33)
    for text in ("a,b", "", "1,", "²", "٣", "1_0", "-1", "9" * 5000):
        with pytest.raises(InputError, match=r"milestones is .*, expected whole numbers"):
            whole_numbers("milestones", text)

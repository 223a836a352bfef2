"""Options on the command line replace a preset's values, and say what is wrong with them."""

import pytest

from nmsfree.errors import InputError
from nmsfree_training.config import preset
from nmsfree_training.recipe_options import RecipeOptions, whole_numbers

NANO = preset("fcos_e2e_nano", 10)


def test_nothing_given_changes_nothing() -> None:
    assert RecipeOptions().apply(NANO) == NANO


def test_values_replace_those_of_the_preset() -> None:
    options = RecipeOptions(epochs=7, mosaic=0.5, frozen_stages=3, head_norm="group", ema=0.99)
    changed = options.apply(NANO)
    assert (changed.train.epochs, changed.train.mosaic, changed.train.ema) == (7, 0.5, 0.99)
    assert (changed.model.frozen_stages, changed.model.head_norm) == (3, "group")
    assert changed.train.learning_rate == NANO.train.learning_rate


def test_zero_switches_off() -> None:
    changed = RecipeOptions(clip_norm=0.0, crop=0.0, ema=0.0).apply(NANO)
    assert (changed.train.clip_norm, changed.train.crop, changed.train.ema) == (None,) * 3


def test_what_goes_together_is_filled_in() -> None:
    step = RecipeOptions(schedule="step", epochs=36).apply(NANO)
    assert step.train.milestones == (24, 33)
    sides = RecipeOptions(short_sides=(256, 320)).apply(NANO)
    assert sides.train.long_side == 640
    published = RecipeOptions(short_sides=(256, 320)).apply(preset("fcos_rt_r18_3x"))
    assert published.train.long_side == 900


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (RecipeOptions(optimizer="adam"), "--optimizer is 'adam', expected sgd, adamw"),
        (RecipeOptions(schedule="poly"), "--schedule is 'poly', expected step, cosine"),
        (RecipeOptions(head_norm="layer"), "--head-norm is 'layer'"),
        (RecipeOptions(learning_rate=0.0), "learning rate is 0.0, expected a number above 0"),
        (RecipeOptions(learning_rate=float("nan")), "learning rate is nan, expected a number"),
        (RecipeOptions(weight_decay=float("inf")), "--weight-decay is inf, expected a finite"),
        (RecipeOptions(mosaic=1.5), "--mosaic is 1.5, expected 0 … 1"),
        (RecipeOptions(ema=1.0), "--ema is 1.0"),
        (RecipeOptions(clip_norm=-1.0), "--clip-norm is -1.0"),
        (RecipeOptions(scale=(2.0, 1.0)), "expected LOW ≤ HIGH"),
        (RecipeOptions(short_sides=(8,)), "--short-sides has 8"),
    ],
)
def test_values_that_make_no_sense(options: RecipeOptions, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        options.apply(NANO)
    assert complaint in str(caught.value)


def test_lists_of_numbers() -> None:
    assert whole_numbers("--milestones", "24,33") == (24, 33)
    assert whole_numbers("--milestones", None) is None
    with pytest.raises(InputError, match="--milestones is 'a,b', expected whole numbers"):
        whole_numbers("--milestones", "a,b")

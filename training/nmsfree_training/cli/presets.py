"""Presets as a user reads them: the defaults in the help, the recipe of a run."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from nmsfree_training.config import DEFAULT_MODEL, PRESETS, Matching, Preset, preset


def asked_preset(words: Sequence[str]) -> Preset:
    """The preset that a command line names, or the usual one: the help shows its values."""
    given = [
        b if a == "--model" else a[8:] for a, b in pairwise([*words, ""]) if a[:7] == "--model"
    ]
    name = given[-1] if given else DEFAULT_MODEL
    return preset(name if name in PRESETS else DEFAULT_MODEL)


def value_text(value: Any) -> str:
    """As it is typed on the command line."""
    if value in (None, ()):
        return "off"
    if isinstance(value, tuple):
        return ",".join(value_text(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def recipe_text(chosen: Preset, usual: Preset) -> str:
    """A recipe in one line: what differs from the usual one of its model."""
    values, others = (
        {"size": p.input_size} | vars(p.model) | vars(p.train) | _matching(p)
        for p in (chosen, usual)
    )
    parts = [f"{k} {value_text(v)}" for k, v in values.items() if v != others[k]]
    changes = f", with {', '.join(parts)}" if parts else ""
    return f"recipe: {usual.model.name}'s{changes}"


def _matching(chosen: Preset) -> dict[str, str]:
    """How each head's cells are assigned, as its options say it."""
    made = {}
    for head in ("o2m", "o2o"):
        own: Matching = getattr(chosen.train, head)
        way = "hungarian" if own.hungarian else "argmin"
        made[head] = f"matching top {own.topk} {way} quality {value_text(own.quality)}"
    return made

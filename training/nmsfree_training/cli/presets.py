"""Presets as a user sees them: the list, the defaults in the help, the recipe of a run."""

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


def print_presets() -> None:
    """A table of them on stdout: what they cost, and what they start from."""
    import torch
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from nmsfree_training.model.detector import Fcos
    from nmsfree_training.weights.card import gmac

    table = Table("preset", "heads", "input", "parameters", "GMAC", "starts from", box=box.SIMPLE)
    for name in PRESETS:
        chosen = preset(name)
        with torch.device("meta"):
            network = Fcos(chosen.model)
        # As deployed: with one head.
        parts = (network.backbone, network.fpn, network.heads[network.config.deployed_head])
        count = sum(p.numel() for part in parts for p in part.parameters())
        height, width = chosen.input_size
        table.add_row(
            name,
            "+".join(chosen.model.heads),
            f"{height} × {width}",
            f"{count / 1e6:.2f} M",
            f"{gmac(network, chosen.input_size):.2f}",
            chosen.starts_from,
        )
    table.caption = "80 classes; as deployed, with one head; all start from --init FILE, too"
    Console().print(table)

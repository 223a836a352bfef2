"""The key names of the published checkpoints, in both spellings."""

from collections.abc import Mapping
from typing import TypeVar

from nmsfree_training.config import HeadName

T = TypeVar("T")

# ours → FCOS_RT (one head) and FCOS_E2E (two heads)
_ONE_HEAD = {"backbone.": "backbone.body.", "fpn.": "fpn."}
_TWO_HEADS = {
    "backbone.": "backbone.body.",
    "fpn.": "backbone_fpn.",
    "heads.o2m.": "detection_head_o2m.",
    "heads.o2o.": "detection_head_o2o.",
}


def _prefixes(heads: tuple[HeadName, ...]) -> dict[str, str]:
    return _TWO_HEADS if len(heads) == 2 else _ONE_HEAD | {f"heads.{heads[0]}.": "head."}


def _rename(state: Mapping[str, T], prefixes: Mapping[str, str]) -> dict[str, T]:
    renamed = {}
    for key, value in state.items():
        old = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        renamed[key if old is None else prefixes[old] + key.removeprefix(old)] = value
    return renamed


def to_published_keys(heads: tuple[HeadName, ...], state: Mapping[str, T]) -> dict[str, T]:
    """Rename this project's keys to those of the published files."""
    return _rename(state, _prefixes(heads))


def from_published_keys(heads: tuple[HeadName, ...], state: Mapping[str, T]) -> dict[str, T]:
    """Rename the keys of a published file to this project's."""
    return _rename(state, {new: old for old, new in _prefixes(heads).items()})


def looks_published(state: Mapping[str, object]) -> bool:
    """Whether the keys are in one of the two published spellings."""
    return any(key.startswith("backbone.body.") for key in state)


def has_two_heads(state: Mapping[str, object]) -> bool:
    """Whether a published state dict is FCOS_E2E (True) or FCOS_RT (False)."""
    return any(key.startswith("detection_head_o2o.") for key in state)

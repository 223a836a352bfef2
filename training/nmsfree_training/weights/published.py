"""The key names of the published checkpoints, in both spellings."""

import zlib
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from nmsfree_training.config import HeadName
from nmsfree_training.model.detector import Fcos

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


def random_tensor(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the float32 tensor of one state-dict key of a published checkpoint."""
    stream = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    kind = key.rsplit(".", 1)[-1]
    if kind == "running_var":
        value = stream.uniform(0.5, 1.5, shape)
    elif kind == "running_mean":
        value = 0.1 * stream.standard_normal(shape)
    elif kind == "weight" and len(shape) == 4:
        gain = 0.4 if "_pred" in key else 1.0
        value = gain * stream.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    elif kind == "weight":
        value = stream.uniform(0.5, 1.0, shape)
    elif key.endswith("cls_pred.bias"):
        value = 0.1 * stream.standard_normal(shape) - 2.0
    elif key.endswith("reg_pred.bias"):
        value = np.array([0.0, 0.0, 1.0, 1.0])
    else:
        value = 0.1 * stream.standard_normal(shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def random_state_dict(model: Fcos, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights for every key of `model`, under the published keys."""

    keys = to_published_keys(model.config.heads, model.state_dict())
    # Counters of batches stay whole numbers, as a checkpoint has them.
    return {key: random_tensor(key, tuple(t.shape), seed).to(t.dtype) for key, t in keys.items()}

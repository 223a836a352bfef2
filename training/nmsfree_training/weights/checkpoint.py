"""The only place that reads or writes weights.

Own checkpoints are `.safetensors` with the configuration, classes and provenance as JSON in the
header. Published `.pth` files are read by `load_published`. Nothing that is unpickled runs code.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nmsfree.datasets.rows import COCO_CATEGORY_IDS, COCO_NAMES
from nmsfree.errors import CheckpointError, InputError
from nmsfree.files import write_atomic
from nmsfree.parsing import Side, decode_format
from nmsfree.spec import ModelSpec, Thresholds
from nmsfree.text import FilePath, as_path, shown
from nmsfree_training.config import MAX_CLASSES, ModelConfig, preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.published import from_published_keys
from nmsfree_training.weights.torch_file import (
    check_values,
    is_state_dict,
    read_safetensors,
    read_torch_file,
)

HEADER_KEY = "nmsfree"
AGAIN = "train or copy the checkpoint again"
FORMAT_VERSION = "1.4"  # 1.1: thresholds; 1.2: deployed_rival_iou; 1.3: dedup_iou; 1.4: backbone


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights and all that is needed to use them."""

    model: ModelConfig
    input_size: tuple[int, int]  # (height, width) in pixels it is deployed at
    class_names: tuple[str, ...]  # one per class, as the ids
    category_ids: tuple[int, ...]
    state: Mapping[str, Tensor]  # by this project's keys
    provenance: Mapping[str, str] = field(default_factory=dict)  # command, seed, source file, …
    thresholds: Thresholds | None = None  # recommended scores; None = not measured

    def build(self) -> Fcos:
        """Return the network with these weights, in evaluation mode."""
        network = Fcos(self.model)
        network.load_state_dict(self.state)
        return network.eval()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; the file appears whole or not at all."""
    header = {
        "format_version": FORMAT_VERSION,
        "model": asdict(checkpoint.model),
        "input_size": checkpoint.input_size,
        "class_names": checkpoint.class_names,
        "category_ids": checkpoint.category_ids,
        "provenance": {key: shown(text, 4000) for key, text in checkpoint.provenance.items()},
        "thresholds": checkpoint.thresholds and checkpoint.thresholds.to_json(),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.state.items()}
    write_atomic(path, save(tensors, metadata={HEADER_KEY: json.dumps(header)}))


def load_checkpoint(
    path: FilePath, model: str | None = None, num_classes: int | None = None
) -> Checkpoint:
    """Read an own checkpoint (`.safetensors`) or a published one (`.pth`).

    Args:
        model: preset of a published file; None tells it from the keys and the file's name.
        num_classes: refuse a checkpoint with another number of classes.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or not matching the network.
        InputError: it is no path.
    """
    path = as_path(path, "the checkpoint")
    published = path.suffix.lower() == ".pth"
    checkpoint = load_published(path, model) if published else _load_safetensors(path)
    if model is not None and checkpoint.model.name != model:
        raise CheckpointError(f"{path}: holds {checkpoint.model.name}, --model says {model}")
    found = checkpoint.model.num_classes
    if num_classes is not None and found != num_classes:
        raise CheckpointError(
            f"{path}: trained for {found} classes, expected {num_classes}: "
            "use the dataset it was trained on, or train for yours"
        )
    return checkpoint


@dataclass(frozen=True)
class _Header:
    """What a checkpoint says of itself; unknown fields come from a newer minor version."""

    model: ModelConfig
    input_size: tuple[Side, Side]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    provenance: dict[str, str]
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        counts = self.model.num_classes, len(self.class_names), len(self.category_ids)
        if len(set(counts)) > 1:
            raise CheckpointError(
                f"{counts[0]} classes, {counts[1]} names and {counts[2]} ids, expected as many of "
                f"each: {AGAIN}"
            )


def _load_safetensors(path: Path) -> Checkpoint:
    metadata, state = read_safetensors(path)
    if HEADER_KEY not in metadata:
        raise CheckpointError(
            f"{path}: no '{HEADER_KEY}' entry in the header, so this file was not written by "
            "nmsfree: train with `nmsfree train`, or load a published .pth"
        )
    where = f"{shown(path)}: '{HEADER_KEY}' entry of the header"
    text, state = _from_format_1_2(metadata[HEADER_KEY], state)
    header = decode_format(text, _Header, FORMAT_VERSION, where, CheckpointError, AGAIN)
    _check_tensors(path, header.model, state)
    return Checkpoint(state=state, **vars(header))


def _from_format_1_2(text: str, state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Rename what was the rival filter until then; a header and tensors of 1.3 stay as they are."""
    renamed = {k.replace(".rival_filter.", ".duplicate_filter."): v for k, v in state.items()}
    return text.replace("rival_iou", "dedup_iou"), renamed


def load_published(path: Path, model: str | None = None) -> Checkpoint:
    """Read a `.pth` of the published experiment: FCOS_RT or FCOS_E2E, R18, any class count.

    The file is a pickle of {"model": state dict, "args": argparse.Namespace, "mAP": NumPy scalar,
    …}; besides tensors only those two kinds are admitted.
    """
    state, extra = _read_pth(path)
    if not any(key.startswith("backbone.body.") for key in state):
        raise CheckpointError(
            f"{path}: keys such as {shown(next(iter(state), 'none'))!r}, expected a published FCOS "
            "checkpoint with keys 'backbone.body.…'"
        )
    name = model or _published_model(path, state)
    num_classes = _count_classes(path, state)
    chosen = preset(name, num_classes)
    renamed = from_published_keys(chosen.model.heads, state)
    _check_tensors(path, chosen.model, renamed)
    names, ids = COCO_NAMES, COCO_CATEGORY_IDS
    if num_classes != len(names):  # the file does not carry names: number them, visibly
        ids = tuple(range(num_classes))
        names = tuple(f"class {i}" for i in ids)
    return Checkpoint(chosen.model, chosen.input_size, names, ids, renamed, extra)


def _read_pth(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    allowed: list[Any] = [
        argparse.Namespace,
        np.dtype,
        np.dtypes.Float64DType,
        # Files written with NumPy 1 name the same function by its old path.
        np._core.multiarray.scalar,  # type: ignore[attr-defined]
        (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    ]
    content = read_torch_file(path, allowed)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dict")
    state = content.get("model", content)
    if not is_state_dict(state):
        raise CheckpointError(
            f"{path}: no 'model' entry with tensors, found {shown(list(content)[:6])}"
        )
    extra = {"source": path.name}
    figures = {k: content.get(k) for k in ("mAP", "epoch")}
    extra |= {k: str(float(v)) for k, v in figures.items() if isinstance(v, int | float)}
    return state, extra


def _published_model(path: Path, state: Mapping[str, Tensor]) -> str:
    """The one-to-one file has the keys of the one-to-many one; only its name says 'top1'."""
    if any(key.startswith("detection_head_o2o.") for key in state):
        return "fcos_e2e_r18_3x"
    return "fcos_o2o_r18_3x" if "top1" in path.name or "o2o" in path.name else "fcos_rt_r18_3x"


def _count_classes(path: Path, state: Mapping[str, Tensor]) -> int:
    counts = {t.shape[0] for k, t in state.items() if k.endswith("cls_pred.weight") and t.ndim}
    if len(counts) != 1 or not 1 <= min(counts) <= MAX_CLASSES:
        raise CheckpointError(
            f"{path}: class counts {shown(sorted(counts))} in 'cls_pred', expected one, from 1 to "
            f"{MAX_CLASSES}"
        )
    return int(counts.pop())


def _check_tensors(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    with _Undrawn():  # and on the processor: on "meta" PyTorch loads its compiler, for seconds
        own = Fcos(config).state_dict()
    expected = {k: tuple(t.shape) for k, t in own.items()}
    missing = [k for k in expected if k not in state]
    extra = [k for k in state if k not in expected]
    wrong = [k for k in expected if k in state and tuple(state[k].shape) != expected[k]]
    if missing or extra:
        raise CheckpointError(
            f"{path}: does not fit {config.name}: {len(missing)} keys missing"
            f"{_first(missing)}, {len(extra)} too many{_first(extra)}: choose the right --model"
        )
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{path}: does not fit {config.name}: {key} has shape {tuple(state[key].shape)}, "
            f"expected {expected[key]}"
        )
    check_values(path, state, own)


class _Undrawn(TorchFunctionMode):
    """Draws no random values: nobody looks at them, and the generator stays where it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _first(keys: list[str]) -> str:
    return f" (first: {shown(keys[0])})" if keys else ""


KEY = "deployed_dedup_iou"  # entry of a file's provenance, where it was asked for at export


def with_dedup_iou(checkpoint: Checkpoint, iou: float) -> Checkpoint:
    """Return the checkpoint with this τ, see `model/filters.py`; nothing is trained again.

    Recommended thresholds stay, and say with which τ they were measured.

    Raises:
        InputError: the network has no duplicate filter, or the IoU is not one.
    """
    model, thresholds = checkpoint.model, checkpoint.thresholds
    if not model.dedup_iou:
        raise InputError(
            f"dedup IoU is {iou:g}, but {model.name} was trained without a duplicate filter:"
            " leave it out, or train with --dedup-iou"
        )
    if not 0 < iou <= 1:
        raise InputError(f"dedup IoU is {iou:g}, expected more than 0, up to 1")
    own = model.deployed_dedup_iou or model.dedup_iou
    if iou == own:
        return checkpoint
    if thresholds is not None:
        where = f"{thresholds.measured_on}, with dedup IoU {own:g}"
        thresholds = replace(thresholds, measured_on=where)
    return replace(
        checkpoint,
        model=replace(model, deployed_dedup_iou=iou),
        provenance={**checkpoint.provenance, KEY: f"{iou:g}"},
        thresholds=thresholds,
    )


def deployed_like(checkpoint: Checkpoint, spec: ModelSpec) -> Checkpoint:
    """Return the checkpoint with the τ that a deployed model was exported with.

    Raises:
        InputError: as `with_dedup_iou`.
    """
    iou = spec.provenance.get(KEY) or spec.provenance.get("deployed_rival_iou")  # until format 1.3
    return checkpoint if iou is None else with_dedup_iou(checkpoint, float(iou))

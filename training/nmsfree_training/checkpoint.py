"""The only place that reads or writes weights.

Own checkpoints are `.safetensors` with the configuration, classes and provenance as JSON in the
header. Published `.pth` files are read by `load_published`. Nothing that is unpickled runs code.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nmsfree.data.names import COCO_CATEGORY_IDS, COCO_NAMES
from nmsfree.errors import CheckpointError, ModelError
from nmsfree.files import write_atomic
from nmsfree.thresholds import Thresholds
from nmsfree_training.config import ModelConfig, preset
from nmsfree_training.detector import Fcos
from nmsfree_training.published import from_published_keys, has_two_heads, looks_published
from nmsfree_training.torch_file import describe_bytes, read_torch_file

HEADER_KEY = "nmsfree"
FORMAT_VERSION = "1.2"  # 1.1: thresholds; 1.2: deployed_rival_iou


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights and all that is needed to use them.

    Attributes:
        model: the network's configuration.
        input_size: (height, width) in pixels it is deployed at.
        class_names, category_ids: one per class.
        state: tensors by this project's keys.
        provenance: free text: command, seed, source file, ….
        thresholds: recommended scores, measured on a labelled split; None = not measured.
    """

    model: ModelConfig
    input_size: tuple[int, int]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    state: Mapping[str, Tensor]
    provenance: Mapping[str, str] = field(default_factory=dict)
    thresholds: Thresholds | None = None

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
        "provenance": dict(checkpoint.provenance),
        "thresholds": checkpoint.thresholds and checkpoint.thresholds.to_json(),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.state.items()}
    write_atomic(path, save(tensors, metadata={HEADER_KEY: json.dumps(header)}))


def load_checkpoint(
    path: str | Path, model: str | None = None, num_classes: int | None = None
) -> Checkpoint:
    """Read an own checkpoint (`.safetensors`) or a published one (`.pth`).

    Args:
        model: preset of a published file; None tells it from the keys and the file's name.
        num_classes: refuse a checkpoint with another number of classes.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or not matching the network.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected a .safetensors or .pth checkpoint")
    checkpoint = (
        load_published(path, model) if path.suffix.lower() == ".pth" else _load_safetensors(path)
    )
    if model is not None and checkpoint.model.name != model:
        raise CheckpointError(f"{path}: holds {checkpoint.model.name}, --model says {model}")
    found = checkpoint.model.num_classes
    if num_classes is not None and found != num_classes:
        raise CheckpointError(
            f"{path}: trained for {found} classes, expected {num_classes}: "
            "use the dataset it was trained on, or train for yours"
        )
    return checkpoint


def _load_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: {describe_bytes(path)}, expected a whole .safetensors file ({error})"
        ) from None
    if HEADER_KEY not in metadata:
        raise CheckpointError(
            f"{path}: no '{HEADER_KEY}' entry in the header, so this file was not written by "
            "nmsfree: train with `nmsfree train`, or load a published .pth"
        )
    checkpoint = _from_header(path, metadata[HEADER_KEY], state)
    _check_keys(path, checkpoint.model, state)
    return checkpoint


def _from_header(path: Path, text: str, state: Mapping[str, Tensor]) -> Checkpoint:
    """Fields that this version does not know come from a newer minor version: ignored."""
    try:
        header = json.loads(text)
        found = str(header["format_version"])
        if found.split(".")[0] != FORMAT_VERSION.split(".")[0]:
            raise CheckpointError(
                f"{path}: checkpoint format {found}, this version reads {FORMAT_VERSION}: "
                "update nmsfree-training"
            )
        known = {f.name for f in fields(ModelConfig)}
        model = {k: v for k, v in header["model"].items() if k in known}
        return Checkpoint(
            ModelConfig(**model | {"heads": tuple(model["heads"])}),
            (header["input_size"][0], header["input_size"][1]),
            tuple(header["class_names"]),
            tuple(header["category_ids"]),
            state,
            header["provenance"],
            _read_thresholds(header.get("thresholds")),
        )
    except (ValueError, LookupError, TypeError, AttributeError, ModelError) as error:
        raise CheckpointError(
            f"{path}: the '{HEADER_KEY}' entry of the header cannot be read ({error!r}): "
            "train or copy the checkpoint again"
        ) from None


def _read_thresholds(values: Any) -> Thresholds | None:
    return None if values is None else Thresholds.from_json(values)


def load_published(path: Path, model: str | None = None) -> Checkpoint:
    """Read a `.pth` of the published experiment: FCOS_RT or FCOS_E2E, R18, any class count.

    The file is a pickle of {"model": state dict, "args": argparse.Namespace, "mAP": NumPy scalar,
    …}; besides tensors only those two kinds are admitted.
    """
    state, extra = _read_pth(path)
    if not looks_published(state):
        raise CheckpointError(
            f"{path}: keys such as {next(iter(state), 'none')!r}, expected a published FCOS "
            "checkpoint with keys 'backbone.body.…'"
        )
    name = model or _published_model(path, state)
    num_classes = _count_classes(path, state)
    chosen = preset(name, num_classes)
    renamed = from_published_keys(chosen.model.heads, state)
    _check_keys(path, chosen.model, renamed)
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
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise CheckpointError(f"{path}: no 'model' entry with tensors, found {list(content)[:6]}")
    extra = {"source": path.name}
    figures = {k: content.get(k) for k in ("mAP", "epoch")}
    extra |= {k: str(float(v)) for k, v in figures.items() if isinstance(v, int | float)}
    return state, extra


def _published_model(path: Path, state: Mapping[str, Tensor]) -> str:
    """The one-to-one file has the keys of the one-to-many one; only its name says 'top1'."""
    if has_two_heads(state):
        return "fcos_e2e_r18_3x"
    return "fcos_o2o_r18_3x" if "top1" in path.name or "o2o" in path.name else "fcos_rt_r18_3x"


def _count_classes(path: Path, state: Mapping[str, Tensor]) -> int:
    counts = {t.shape[0] for k, t in state.items() if k.endswith("cls_pred.weight") and t.ndim}
    if len(counts) != 1:
        raise CheckpointError(f"{path}: class counts {sorted(counts)} in 'cls_pred', expected one")
    return int(counts.pop())


def _check_keys(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = {k: tuple(t.shape) for k, t in Fcos(config).state_dict().items()}
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


def _first(keys: list[str]) -> str:
    return f" (first: {keys[0]})" if keys else ""

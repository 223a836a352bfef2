"""What the graph of an ONNX file must look like to be one of ours, whatever engine reads it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.errors import ModelError
from nmsfree.spec import METADATA_KEY, ModelSpec
from nmsfree.text import shown


class Port(NamedTuple):
    """An input or output of a graph; its type as ONNX Runtime spells it, open sizes by name."""

    name: str
    type: str  # "tensor(uint8)"
    shape: list[int | str | None]


def read_spec(
    path: Path, metadata: str | None, inputs: Sequence[Port], outputs: Sequence[Port]
) -> ModelSpec:
    """Read the description in a file, and hold it against the graph.

    Args:
        metadata: the file's text under `METADATA_KEY`; None where it has none.

    Raises:
        ModelError: not written by this project, or description and graph differ.
    """
    if metadata is None:
        raise ModelError(
            f"{path}: no '{METADATA_KEY}' metadata, so this is not a model exported by nmsfree: "
            "export the checkpoint with `nmsfree export`"
        )
    names = [output.name for output in outputs]
    missing = [name for name in RawDetections._fields if name not in names]
    if missing:
        raise ModelError(
            f"{path}: outputs {', '.join(missing)} are missing, found {', '.join(names)}"
        )
    spec = ModelSpec.from_json(metadata, f"{shown(path)}: model description")
    _check_input(path, spec, inputs)
    _check_outputs(path, spec, outputs)
    return spec


def _check_input(path: Path, spec: ModelSpec, inputs: Sequence[Port]) -> None:
    """Compare the graph's input with the description."""
    found = [(i.name, i.type, [d if isinstance(d, int) else None for d in i.shape]) for i in inputs]
    expected = ("images", "tensor(uint8)", [spec.batch, spec.height, spec.width, 3])
    if found != [expected]:
        given = "; ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise ModelError(
            f"{path}: input is {shown(given)}, but its description says images tensor(uint8) "
            f"[{spec.batch or 'N'}, {spec.height}, {spec.width}, 3]: export the model again"
        )


def _check_outputs(path: Path, spec: ModelSpec, outputs: Sequence[Port]) -> None:
    """Compare the number of rows and box corners with the description."""
    shapes = {output.name: output.shape for output in outputs}
    found = shapes["detection_boxes"][1:], shapes["detection_scores"][1:]
    if found != ([spec.top_k, 4], [spec.top_k]):
        raise ModelError(
            f"{path}: outputs are {shapes}, but its description says {spec.top_k} rows: "
            "export the model again"
        )


def check_images(images: NDArray[Any], spec: ModelSpec) -> None:
    """Refuse images that are not uint8 [N, H, W, 3] of the model's size.

    For engines that would take them: OpenVINO casts and reshapes silently, and a buffer of fixed
    size would be filled in part.

    Raises:
        ModelError: another type or shape.
    """
    rows = spec.batch or max(len(images), 1)
    if images.dtype != np.uint8 or images.shape != (rows, spec.height, spec.width, 3):
        raise refusal(
            images, f"expected {spec.batch or 'N'} × {spec.height} × {spec.width} × 3, uint8"
        )


def refusal(images: NDArray[Any], reason: str) -> ModelError:
    """The error for images that a model does not take."""
    shape = " × ".join(map(str, images.shape))
    return ModelError(f"the model refused images of {shape}, {images.dtype} ({reason})")


def one_line(error: Exception) -> str:
    """A vendor's message as one short line."""
    return " ".join(str(error).split())[:200]

"""What the graph of an ONNX file must look like to be one of ours, whatever engine reads it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.errors import ModelError
from nmsfree.machine import other_file, sha256
from nmsfree.parsing import check_file
from nmsfree.spec import METADATA_KEY, ModelSpec
from nmsfree.text import shown

MAX_ONNX = 2 << 30  # bytes that one file can have
HIGHEST_SCORE = 1 + 1e-3  # an engine's sigmoid may end a rounding above 1


class Port(NamedTuple):
    """An input or output of a graph; its type as ONNX Runtime spells it, open sizes by name."""

    name: str
    type: str  # "tensor(uint8)"
    shape: list[int | str | None]


def check_model_file(path: Path, digest: str | None) -> None:
    """Refuse what is no regular file, too large, or another one than the application means."""
    check_file(path, MAX_ONNX, ModelError)
    if digest is not None and (found := sha256(path)) != digest:
        raise other_file(path, found, digest)


def output_shapes(top_k: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """NumPy's type and the size, without the batch, of each output of the contract."""
    return {
        "num_detections": ("int32", (1,)),
        "detection_boxes": ("float32", (top_k, 4)),
        "detection_scores": ("float32", (top_k,)),
        "detection_classes": ("int32", (top_k,)),
    }


def image_port(spec: ModelSpec) -> tuple[str, tuple[int | None, ...]]:
    """NumPy's type and the size of the input `images`; None is open."""
    if spec.input == "any":
        return "uint8", (1, *(spec.source or (None, None)), 3)
    if spec.input == "nchw-float":
        return "float32", (spec.batch, 3, spec.height, spec.width)
    sides = (None, None) if spec.size_step else (spec.height, spec.width)
    return "uint8", (spec.batch, *sides, 3)


def read_spec(
    path: Path, metadata: str | None, inputs: Sequence[Port], outputs: Sequence[Port]
) -> ModelSpec:
    """Read the description in a file, its text under `METADATA_KEY`, and hold it against the graph.

    ModelError: not written by this project, or description and graph differ.
    """
    if metadata is None:
        raise ModelError(
            f"{path}: no '{METADATA_KEY}' metadata, so this is not a model exported by nmsfree: "
            "export the checkpoint with `nmsfree export`, or let `nmsfree adopt` make a model of"
            " another project's file"
        )
    names = [output.name for output in outputs]
    missing = [name for name in RawDetections._fields if name not in names]
    if missing:
        raise ModelError(
            f"{path}: outputs {', '.join(missing)} are missing, found {', '.join(names)}"
        )
    spec = ModelSpec.from_json(metadata, f"{path}: model description")
    kind, size = image_port(spec)
    kind = f"tensor({kind.replace('float32', 'float')})"
    found = [(i.name, i.type, [d if isinstance(d, int) else None for d in i.shape]) for i in inputs]
    if found != [("images", kind, [*size])]:
        given = "; ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        wanted = ", ".join(str(side or "N") for side in size)
        raise ModelError(
            f"{path}: input is {shown(given)}, but its description says images {kind} [{wanted}]:"
            " export the model again"
        )
    expected = output_shapes(spec.top_k)
    for output in outputs:
        kind, sizes = output.type, output.shape[1:]
        if output.name in expected:
            name, fixed = expected[output.name]
            kind, sizes = f"tensor({name.replace('float32', 'float')})", list(fixed)
        batch = output.shape[0] if output.shape else 0
        if isinstance(batch, str) or spec.batch is None:  # engines may take either for the other
            batch = spec.batch
        if (output.type, batch, output.shape[1:]) != (kind, spec.batch, sizes):
            raise ModelError(
                f"{path}: output is {output.name} {output.type} {shown(output.shape)}, but its"
                f" description says {kind} {[spec.batch or 'N', *sizes]}: export the model again"
            )
    return spec


def rows_of(
    raw: RawDetections, index: int, spec: ModelSpec
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Return the rows of one image that count, and refuse what no detector answers.

    That is boxes float32 [n, 4] xyxy in input pixels, scores float32 [n], class ids int32 [n].
    ModelError: a count, score, box or class out of its range, or not a number.
    """
    # Lists and few calls of NumPy: on a hundred numbers a call costs more than its work.
    values, count = raw.detection_scores[index].tolist(), int(raw.num_detections[index, 0])
    if not 0 <= count <= len(values):
        raise _nonsense(f"{count} detections in {len(values)} rows")
    if math.isnan(sum(values)):  # also below the floor, where NaN puts all
        raise _nonsense("scores that are not numbers")
    boxes, scores = raw.detection_boxes[index, :count], raw.detection_scores[index, :count]
    class_ids = raw.detection_classes[index, :count]
    if count == 0:
        return boxes, scores, class_ids
    low, high = min(values[:count]), max(values[:count])
    if low < 0 or high > HIGHEST_SCORE:
        raise _nonsense(f"scores from {low:.3g} to {high:.3g}, expected 0 … 1")
    finite = np.isfinite(boxes).all()
    if not (finite and (boxes[:, :2] <= boxes[:, 2:]).all()):
        # Another project's network may make inverted ones of cells in which it sees nothing.
        if "adopted" not in spec.provenance or not finite:
            raise _nonsense("boxes that are inverted or not finite")
        boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    ids, known = class_ids.tolist(), len(spec.class_names)
    if min(ids) < 0 or max(ids) >= known:
        wrong = next(i for i in ids if not 0 <= i < known)
        raise _nonsense(f"class {wrong}, its description names {known}")
    return boxes, scores, class_ids


def _nonsense(what: str) -> ModelError:
    return ModelError(f"the model answers {what}: its weights are broken, export it again")


def check_images(images: NDArray[Any], spec: ModelSpec) -> None:
    """Refuse images that are not uint8 [N, H, W, 3] of the model's size.

    For engines that would take them: OpenVINO casts and reshapes silently, and a buffer of fixed
    size would be filled in part.
    """
    step, size = spec.size_step, (spec.height, spec.width)
    open_size = spec.input == "any" and spec.source is None
    wanted: tuple[int | None, ...] = spec.batch, *(spec.source or size), 3
    if open_size or (
        step and images.ndim == 4 and images.size and not np.mod(images.shape[1:3], step).any()
    ):
        wanted = spec.batch, None, None, 3
    fits = images.ndim == 4 and len(images) > 0 and images.dtype == np.uint8
    pairs = zip(images.shape, wanted, strict=False)
    if not fits or any(want not in (None, have) for have, want in pairs):
        sizes = " × ".join(str(side or "N") for side in wanted)
        other = f", or multiples of {step}" if step else ""
        raise refusal(images, f"expected {sizes}{other}, uint8")


def as_input(images: NDArray[np.uint8], spec: ModelSpec) -> NDArray[Any]:
    """Make what the graph takes of uint8 [N, H, W, 3], BGR; planar floats RGB 0 … 1 of some."""
    if spec.input != "nchw-float":
        return images
    check_images(images, spec)
    planes = images[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32, "C")
    return planes / np.float32(255)


def refusal(images: NDArray[Any], reason: str) -> ModelError:
    """The error for images that a model does not take."""
    shape = " × ".join(map(str, images.shape))
    return ModelError(f"the model refused images of {shape}, {images.dtype} ({reason})")


def one_line(error: Exception) -> str:
    """A vendor's message as one short line."""
    return shown(" ".join(str(error).split())[:200])

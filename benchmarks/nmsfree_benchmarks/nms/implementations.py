"""Implementations of one and the same class-aware greedy NMS, from several libraries.

All take the candidates of a batch as the exported graph has them and say which rows they keep;
what a library needs first (corners to width and height, scores spread over classes, the floor)
belongs to its time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import InputError
from nmsfree.nms import suppress
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.nms.graphs import SELECTED, nms_operator, open_session
from nmsfree_export.graph.nms import CANDIDATES

Kept = list[NDArray[np.int64]]  # of each image the rows that stay, in any order


class Candidates(NamedTuple):
    """What enters NMS, of N images.

    boxes: float32 [N, T, 4], xyxy in input pixels.
    scores: float32 [N, T].
    classes: int64 [N, T].
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def of(self, images: Sequence[int]) -> "Candidates":
        """Return those of some images."""
        rows = list(images)  # a list copies
        return Candidates(self.boxes[rows], self.scores[rows], self.classes[rows])

    def above(self, floor: float) -> float:
        """Return how many an image has above a score, mean."""
        return float((self.scores > np.float32(floor)).sum(axis=1).mean())


Nms = Callable[[Candidates], Kept]


@dataclass(frozen=True)
class Setting:
    """What an implementation is made for.

    Attributes:
        spec: of the o2m model.
        candidates: T, of each image.
        floor, iou: scores above the one take part; boxes overlapping by more than the other go.
        threads: of engines that use several.
    """

    spec: ModelSpec
    candidates: int
    floor: float
    iou: float
    threads: int


def onnx_nms(setting: Setting) -> Nms:
    """`NonMaxSuppression` of ONNX Runtime, as in this project's exported files."""
    model = nms_operator(setting.spec, setting.candidates, setting.floor, setting.iou)
    session = open_session(model.SerializeToString(), setting.threads)
    names = [f"in_{name}" for name in CANDIDATES]

    def run(found: Candidates) -> Kept:
        (selected,) = session.run([SELECTED], dict(zip(names, found, strict=True)))
        return [selected[selected[:, 0] == image, 2] for image in range(len(found.scores))]

    return run


def opencv_nms(setting: Setting) -> Nms:
    """`cv2.dnn.NMSBoxesBatched`, image by image."""

    def run(found: Candidates) -> Kept:
        kept = []
        for boxes, scores, classes in zip(*found, strict=True):
            # Every box is converted one by one, so those under the floor are left out before.
            rows = np.flatnonzero(scores > np.float32(setting.floor))
            corners = boxes[rows]
            sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
            best = cv2.dnn.NMSBoxesBatched(
                sides,  # type: ignore[arg-type]  # arrays are taken as well, and are faster
                scores[rows],
                classes[rows].astype(np.int32),
                setting.floor,
                setting.iou,
            )
            kept.append(rows[np.asarray(best, dtype=np.int64)])
        return kept

    return run


def numpy_nms(setting: Setting) -> Nms:
    """The published post-processing: a greedy loop over the boxes of each class, in NumPy."""
    return _in_numpy(setting, at_once=False)


def host_nms(setting: Setting) -> Nms:
    """What this runtime does behind a TensorRT-RTX engine: a matrix of overlaps, in NumPy."""
    return _in_numpy(setting, at_once=True)


def _in_numpy(setting: Setting, *, at_once: bool) -> Nms:
    def run(found: Candidates) -> Kept:
        kept = []
        for boxes, scores, classes in zip(*found, strict=True):
            rows = np.flatnonzero(scores > np.float32(setting.floor))
            best = suppress(boxes[rows], scores[rows], classes[rows], setting.iou, at_once=at_once)
            kept.append(rows[best])
        return kept

    return run


def torchvision_nms(setting: Setting) -> Nms:
    """`torchvision.ops.batched_nms`, image by image."""
    import torch

    batched_nms = import_module("torchvision.ops").batched_nms

    def run(found: Candidates) -> Kept:
        kept = []
        for boxes, scores, classes in zip(*map(torch.from_numpy, found), strict=True):
            rows = torch.nonzero(scores > setting.floor)[:, 0]
            best = batched_nms(boxes[rows], scores[rows], classes[rows], setting.iou)
            kept.append(rows[best].numpy())
        return kept

    return run


# The first is what the others are held against.
MAKERS: dict[str, Callable[[Setting], Nms]] = {
    "numpy": numpy_nms,
    "host": host_nms,
    "onnx": onnx_nms,
    "opencv": opencv_nms,
    "torchvision": torchvision_nms,
}
REFERENCE = "numpy"
NAMES = (*MAKERS, "efficientnms")
LABELS = {
    "numpy": "NumPy, greedy loop",
    "host": "NumPy, matrix of overlaps",
    "onnx": "ONNX NonMaxSuppression",
    "opencv": "OpenCV NMSBoxesBatched",
    "torchvision": "torchvision batched_nms",
}


def choose(names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return which implementations run here, the reference first, and why others do not.

    Args:
        names: some of `NAMES`; None takes all. The reference runs always.

    Raises:
        InputError: there is no such implementation.
    """
    for name in names or ():
        if name not in NAMES:
            raise InputError(f"implementation is {name!r}, expected one of: {', '.join(NAMES)}")
    wanted = [name for name in NAMES if names is None or name in (*names, REFERENCE)]
    missing = {name: reason for name in wanted if (reason := _missing(name))}
    return [name for name in wanted if name not in missing], missing


def _missing(name: str) -> str | None:
    """Why an implementation does not run here; None where it does."""
    if name == "torchvision" and find_spec("torchvision") is None:
        return "torchvision is not installed, and nothing of this project needs it"
    if name == "efficientnms" and find_spec("tensorrt") is None:
        return "TensorRT, whose plugin it is, is not installed"
    if name == "efficientnms":
        return (
            "this project does not run TensorRT's plugin yet: it has timed NMS on processors only"
        )
    return None


def agreement(kept: Kept, reference: Kept) -> float:
    """Return the share of rows that both keep, of those that either keeps; 1 where none does."""
    both = either = 0
    for ours, theirs in zip(kept, reference, strict=True):
        a, b = set(ours.tolist()), set(theirs.tolist())
        both += len(a & b)
        either += len(a | b)
    return both / either if either else 1.0

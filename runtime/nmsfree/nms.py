"""Greedy non-maximum suppression in NumPy, of one image: what the baselines with NMS run.

Twice, with the same result: the loop of the published post-processing, which the benchmarks time as
published, and the one that engines with NMS on the host run, several times as fast.

No deployed NMS-free model runs this. What NMS would still change on a whole dataset is worked out
by `nmsfree.evaluation.matching.survivors`, for all images at once; a test holds the two together.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 1024  # boxes of a class, whose overlaps take 4 MB; beyond it the loop is as fast


def greedy_nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float
) -> NDArray[np.int64]:
    """Indices of the boxes that survive, best first. Boxes float32 [n, 4] xyxy."""
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    kept = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(best)
        w = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        h = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        overlap = np.maximum(w, 0) * np.maximum(h, 0)
        union = areas[best] + areas[rest] - overlap
        order = rest[overlap <= iou * np.maximum(union, 1e-12)]
    return np.array(kept, dtype=np.int64)


def suppress(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    iou: float,
    class_aware: bool = True,
    *,
    at_once: bool = False,
) -> NDArray[np.int64]:
    """Greedy NMS, class by class unless `class_aware` is False; indices, best score first.

    Args:
        at_once: from a matrix of overlaps, instead of a row for each kept box; the same result.
    """
    nms = _matrix_nms if at_once else greedy_nms
    if not class_aware:
        return nms(boxes, scores, iou)
    kept = [np.zeros(0, np.int64)]
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        kept.append(own[nms(boxes[own], scores[own], iou)])
    indices = np.concatenate(kept)
    return indices[np.argsort(-scores[indices], kind="stable")]


def overlapping(
    boxes: NDArray[np.float32], labels: NDArray[Any], iou: float, class_aware: bool = True
) -> bool:
    """Whether rows that an NMS left overlap by more than it allows: its steps may be too few.

    Surely if no box was clipped at the picture's edge, which makes some overlap more.

    Args:
        boxes: float32 [n, 4] xyxy, best first.
        labels: [n] or longer.
    """
    scores = np.linspace(1, 0, len(boxes), dtype=np.float32)
    own = labels[: len(boxes)].astype(np.int64)
    return len(suppress(boxes, scores, own, iou, class_aware)) < len(boxes)


def _matrix_nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float
) -> NDArray[np.int64]:
    """As `greedy_nms`, and bit for bit its arithmetic; more boxes than `AT_ONCE` go to it."""
    if not 1 < len(boxes) <= AT_ONCE:
        return greedy_nms(boxes, scores, iou)
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = boxes[order].T
    areas = (x2 - x1) * (y2 - y1)
    w = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
    h = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
    overlap = np.maximum(w, 0) * np.maximum(h, 0)
    union = areas[:, None] + areas - overlap
    leaves = overlap <= iou * np.maximum(union, 1e-12)  # [n, n]: whether a row leaves a column
    alive, kept = np.ones(len(order), bool), []
    for row, others in enumerate(leaves):
        if alive[row]:
            kept.append(row)
            alive &= others
    return order[kept]

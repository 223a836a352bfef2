"""Greedy non-maximum suppression in NumPy, of one image: what the baselines with NMS run.

No deployed NMS-free model runs this. What NMS would still change on a whole dataset is worked out
by `nmsfree.evaluation.matching.survivors`, for all images at once; a test holds the two together.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Boxes float32 [n, 4] xyxy, scores float32 [n], IoU → indices of those that survive, best first.
Nms = Callable[[NDArray[np.float32], NDArray[np.float32], float], NDArray[np.int64]]


def greedy_nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float
) -> NDArray[np.int64]:
    """Indices of the boxes that survive, best first. Boxes float32 [n, 4] xyxy.

    Corners are put in order first, as ONNX's NonMaxSuppression does: another project's network may
    answer x2 < x1 where it sees nothing.
    """
    order = np.argsort(-scores, kind="stable")
    x1, y1 = np.minimum(boxes[:, :2], boxes[:, 2:]).T
    x2, y2 = np.maximum(boxes[:, :2], boxes[:, 2:]).T
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
    nms: Nms = greedy_nms,
) -> NDArray[np.int64]:
    """Greedy NMS, class by class unless `class_aware` is False; indices, best score first.

    Args:
        nms: that of one class.
    """
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

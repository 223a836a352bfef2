"""NMS on the host, for engines of the one-to-many head that end in candidates.

TensorRT-RTX cannot build NonMaxSuppression; this does what the end of the ONNX file does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.nms import suppress
from nmsfree.spec import ModelSpec

CANDIDATES = ("candidate_boxes", "candidate_scores", "candidate_classes")


def suppress_candidates(outputs: Mapping[str, NDArray[Any]], spec: ModelSpec) -> RawDetections:
    """Candidates of N images → the outputs of the contract.

    Args:
        outputs: `candidate_boxes` float32 [N, T, 4] xyxy in input pixels, `candidate_scores`
            float32 [N, T], `candidate_classes` int [N, T].
    """
    images = zip(*(outputs[name] for name in CANDIDATES), strict=True)
    rows = [_suppress_one(b, s, c, spec) for b, s, c in images]
    return RawDetections(*(np.stack(column) for column in zip(*rows, strict=True)))


def _suppress_one(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int32],
    spec: ModelSpec,
) -> RawDetections:
    """One image; rows that NMS removed, or that are below the floor, get score 0."""
    assert spec.nms is not None
    above = np.flatnonzero(scores > np.float32(spec.score_floor))
    labels = classes[above].astype(np.int64)
    nms = spec.nms
    best_first = suppress(
        boxes[above], scores[above], labels, nms.iou, nms.class_aware, at_once=True
    )
    kept = above[best_first]
    left = np.zeros_like(scores)
    left[kept] = scores[kept]
    best = np.argsort(-left, kind="stable")[: spec.top_k]
    limit = np.array([spec.width, spec.height] * 2, np.float32)
    return RawDetections(
        np.array([min(kept.size, best.size)], np.int32),
        np.clip(boxes[best], np.float32(0), limit),
        left[best],
        classes[best].astype(np.int32),
    )

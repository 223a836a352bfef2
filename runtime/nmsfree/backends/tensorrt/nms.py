"""NMS on the host, for engines of the one-to-many head that end in candidates.

TensorRT-RTX cannot build NonMaxSuppression; this does what the end of the ONNX file does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.backends.contract import candidate_shapes
from nmsfree.nms import suppress
from nmsfree.spec import ModelSpec

CANDIDATES = tuple(candidate_shapes(0))


def suppress_candidates(outputs: Mapping[str, NDArray[Any]], spec: ModelSpec) -> RawDetections:
    """Candidates of N images → the outputs of the contract.

    Args:
        outputs: `candidate_boxes` float32 [N, T, 4] xyxy in input pixels, `candidate_scores`
            float32 [N, T], `candidate_classes` int [N, T].
    """
    assert spec.nms is not None
    iou, class_aware = spec.nms.iou, spec.nms.class_aware
    limit = np.array([spec.width, spec.height] * 2, np.float32)
    rows = []
    for boxes, scores, classes in zip(*(outputs[name] for name in CANDIDATES), strict=True):
        above = np.flatnonzero(scores > np.float32(spec.score_floor))
        labels = classes[above].astype(np.int64)
        kept = above[suppress(boxes[above], scores[above], labels, iou, class_aware, at_once=True)]
        left = np.zeros_like(scores)  # rows that NMS removed, or that are below the floor
        left[kept] = scores[kept]
        best = np.argsort(-left, kind="stable")[: spec.top_k]
        rows.append(
            (
                np.array([min(kept.size, best.size)], np.int32),
                np.clip(boxes[best], np.float32(0), limit),
                left[best],
                classes[best].astype(np.int32),
            )
        )
    return RawDetections(*(np.stack(column) for column in zip(*rows, strict=True)))

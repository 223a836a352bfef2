"""The published post-processing, in plain PyTorch and NumPy: the reference for exported graphs."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmsfree.nms import suppress
from nmsfree_training.detector import Prediction


@dataclass(frozen=True)
class PostprocessConfig:
    """How predictions become detections.

    Attributes:
        per_level: best (cell, class) pairs kept of each level.
        score_floor: lower scores are dropped.
        nms_iou: IoU above which NMS removes a box; None = no NMS.
        class_aware: NMS within a class only.
        cap_at_cells: as published, a level keeps no more pairs than it has cells; without the
            cap the best `per_level` of each level contain the exact best of all levels.
    """

    per_level: int
    score_floor: float = 0.05
    nms_iou: float | None = None
    class_aware: bool = True
    cap_at_cells: bool = True


EVALUATE_O2M = PostprocessConfig(per_level=1000, nms_iou=0.6)
EVALUATE_O2O = PostprocessConfig(per_level=100)


def select_levels(
    prediction: Prediction, config: PostprocessConfig
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per image the candidates of all levels: boxes [n, 4], scores [n], labels int64 [n].

    Each level keeps min(per_level, its cells) of all its (cell, class) scores by a full sort,
    then those above the floor.
    """
    scores = prediction.logits.sigmoid()
    sizes = [h * w for h, w in prediction.shapes]
    results = []
    for image_scores, image_boxes in zip(scores, prediction.boxes, strict=True):
        parts = [
            _select_level(s, b, config)
            for s, b in zip(image_scores.split(sizes), image_boxes.split(sizes), strict=True)
        ]
        boxes, kept, labels = (torch.cat(list(p)) for p in zip(*parts, strict=True))
        results.append((boxes, kept, labels))
    return results


def _select_level(
    scores: Tensor, boxes: Tensor, config: PostprocessConfig
) -> tuple[Tensor, Tensor, Tensor]:
    cells, num_classes = scores.shape
    ordered, index = scores.flatten().sort(descending=True)
    keep = min(config.per_level, cells) if config.cap_at_cells else config.per_level
    ordered, index = ordered[:keep], index[:keep]
    above = ordered > config.score_floor
    ordered, index = ordered[above], index[above]
    return boxes[index // num_classes], ordered, index % num_classes


def postprocess(
    prediction: Prediction, config: PostprocessConfig
) -> list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]]:
    """Per image boxes float32 [n, 4] (xyxy, input pixels, not clipped), scores [n], labels [n].

    With NMS sorted by score; without, level by level as the published code leaves them.
    """
    results = []
    for boxes, scores, labels in select_levels(prediction, config):
        b, s, c = boxes.numpy(force=True), scores.numpy(force=True), labels.numpy(force=True)
        if config.nms_iou is not None:
            keep = suppress(b, s, c, config.nms_iou, config.class_aware)
            b, s, c = b[keep], s[keep], c[keep]
        results.append((b, s, c))
    return results

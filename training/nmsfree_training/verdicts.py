"""Which predictions are right, which objects were missed: for the eye, not for AP."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nmsfree_training.boxes import pairwise_iou

Verdict = Literal["right", "duplicate", "wrong"]

MATCH_IOU = 0.5


@dataclass(frozen=True)
class Judgement:
    """What became of every prediction and every object.

    Attributes:
        verdicts: for each prediction. "right": the best one of its class on an object;
            "duplicate": another one of that class on an object that is found already;
            "wrong": on no object of its class.
        missed: bool [n], objects without a right prediction.
    """

    verdicts: tuple[Verdict, ...]
    missed: NDArray[np.bool_]

    def count(self, verdict: Verdict) -> int:
        """Number of predictions of one verdict."""
        return self.verdicts.count(verdict)


def judge(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    truth_boxes: NDArray[np.float32],
    truth_labels: NDArray[np.int64],
) -> Judgement:
    """Match predictions with objects of the same class, one to one, at IoU 0.5 or more.

    Args:
        boxes: float32 [m, 4] xyxy, best prediction first.
        labels: int64 [m].
        truth_boxes: float32 [n, 4] xyxy, in the same pixels.
        truth_labels: int64 [n].
    """
    overlap = _overlap(boxes, truth_boxes) * (labels[:, None] == truth_labels[None])  # [m, n]
    found = np.zeros(len(truth_boxes), dtype=np.bool_)
    verdicts: list[Verdict] = []
    for row in overlap:
        on_object = row >= MATCH_IOU
        free = np.where(on_object & ~found, row, -1.0)
        if (free > 0).any():
            found[int(free.argmax())] = True
            verdicts.append("right")
        else:
            verdicts.append("duplicate" if on_object.any() else "wrong")
    return Judgement(tuple(verdicts), ~found)


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    iou = pairwise_iou(torch.from_numpy(a)[None], torch.from_numpy(b)[None])[0]
    return np.asarray(iou.numpy(), dtype=np.float32)

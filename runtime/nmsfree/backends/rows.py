"""All rows of a model's answer, also those below its floor, and which rows of two answers agree."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.spec import ModelSpec


class Rows(NamedTuple):
    """Of one picture, best first: boxes xyxy [n, 4], scores and classes [n]."""

    boxes: NDArray[np.floating[Any]]
    scores: NDArray[np.floating[Any]]
    classes: NDArray[np.integer[Any]]
    cut: float  # rows near this score may be missing

    def alone(self, matched: NDArray[np.intp], other: "Rows", score: float) -> int:
        """Count the rows without a partner that the other list, had it one, would not have cut.

        `score`: by how much a score may differ.
        """
        return int((np.delete(self.scores, matched) > other.cut + score).sum())


def raw_rows(raw: RawDetections, i: int, spec: ModelSpec) -> Rows:
    """The rows of picture `i`: all of the NMS-free head, of NMS those that it left."""
    scores = raw.detection_scores[i]
    count = len(scores) if spec.nms is None else int(raw.num_detections[i, 0])
    cut = float(scores[-1]) if count == len(scores) else spec.score_floor
    boxes, classes = raw.detection_boxes[i], raw.detection_classes[i]
    return Rows(boxes[:count], scores[:count], classes[:count], cut)


def match(a: Rows, b: Rows, score: float, box: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of `a` that have a partner, and their partners in `b`; closest pairs first.

    Partners are of one class and differ by `score` and `box` at most. In these units score and box
    count together, so that of two equal boxes (two classes' worth of one cell, or twins) the one
    with the right score is taken.
    """
    distance = np.abs(a.boxes[:, None] - b.boxes[None]).max(axis=-1) / box
    distance = np.maximum(distance, np.abs(a.scores[:, None] - b.scores[None]) / score)
    distance[a.classes[:, None] != b.classes[None]] = np.inf
    partner = np.full(len(a.scores), -1)
    taken = np.zeros(len(b.scores), bool)
    for flat in np.argsort(distance, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(b.scores))
        if distance[i, j] > 1:
            break
        if partner[i] < 0 and not taken[j]:
            partner[i], taken[j] = j, True
    found = np.flatnonzero(partner >= 0)
    return found, partner[found]

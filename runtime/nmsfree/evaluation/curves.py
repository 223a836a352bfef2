"""Precision and recall of detections over their scores, and the thresholds that follow.

Precision = hits / (hits + misses), recall = hits / objects, F1 = 2·hits / (detections + objects).
A detection is kept if its score is above the threshold.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RECALLS = np.linspace(0, 1, 101)  # where COCO reads its precision


@dataclass(frozen=True)
class Point:
    """What a threshold gives."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


@dataclass(frozen=True, eq=False)
class Curve:
    """Detections of a class, or of all, from the best score down.

    Attributes:
        score: float64 [n], descending.
        hits: float64 [n], right ones among the first 1, 2, … n.
        objects: how many there are to find.
        floor: the lowest score a detection can have.
    """

    score: Values
    hits: Values
    objects: int
    floor: float

    @classmethod
    def of(cls, score: Values, hit: NDArray[np.bool_], objects: int, floor: float) -> "Curve":
        """Sort detections: scores [n], right or wrong [n]."""
        order = np.argsort(-score, kind="stable")
        return cls(score[order], np.cumsum(hit[order], dtype=np.float64), objects, floor)

    @property
    def precision(self) -> Values:
        """float64 [n], of the first 1, 2, … n detections."""
        return self.hits / np.arange(1, len(self.hits) + 1)

    @property
    def recall(self) -> Values:
        """float64 [n], of the first 1, 2, … n detections."""
        return self.hits / max(1, self.objects)

    def best_f1(self) -> Point | None:
        """Return the threshold of the largest F1, half way between the last score that is kept
        and the first that is not; None if no object is ever hit.
        """
        cuts = self._cuts()
        if not len(cuts) or self.hits[-1] == 0:
            return None
        f1 = 2 * self.hits[cuts] / (cuts + 1 + self.objects)
        cut = int(cuts[int(np.argmax(f1))])
        return self._point(cut, (self.score[cut] + self._next(cut)) / 2)

    def lowest_with_precision(self, wanted: float) -> Point | None:
        """Return the lowest threshold with at least this precision; None if there is none."""
        cuts = self._cuts()
        enough = cuts[self.precision[cuts] >= wanted]
        if not len(enough):
            return None
        cut = int(enough[-1])
        return self._point(cut, self._next(cut))

    def at(self, thresholds: Values) -> tuple[Values, Values]:
        """Return precision and recall of what is above each threshold.

        Precision is NaN where nothing is.
        """
        kept = np.searchsorted(-self.score, -thresholds, "left")
        hits = np.concatenate([[0.0], self.hits])[kept]
        precision = np.divide(hits, kept, out=np.full(kept.shape, np.nan), where=kept > 0)
        return precision, hits / max(1, self.objects)

    def precision_at_recalls(self) -> Values:
        """COCO's curve: the best precision at each of the 101 recalls or beyond; 0 if not reached.

        Its mean is the average precision.
        """
        beyond = np.maximum.accumulate(self.precision[::-1])[::-1]
        index = np.searchsorted(self.recall, RECALLS, "left")
        return np.concatenate([beyond, [0.0]])[index]

    def _cuts(self) -> NDArray[np.int64]:
        """Last detections that can be kept: equal scores stay together."""
        return np.flatnonzero(np.diff(self.score, append=-1.0) < 0)

    def _next(self, cut: int) -> float:
        return float(self.score[cut + 1]) if cut + 1 < len(self.score) else self.floor

    def _point(self, cut: int, threshold: float) -> Point:
        return Point(float(threshold), float(self.precision[cut]), float(self.recall[cut]))

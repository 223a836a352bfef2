"""Precision and recall of detections over their scores, and the thresholds that follow.

Precision = hits / (hits + misses), recall = hits / objects, F1 = 2·hits / (detections + objects).
A detection is kept if its score is above the threshold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nmsfree.evaluation.boxes import Boxes
from nmsfree.evaluation.matching import match
from nmsfree.spec import Thresholds

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
    """Detections of a class, or of all, from the best score down."""

    score: Values  # float64 [n], descending
    hits: Values  # float64 [n], right ones among the first 1, 2, … n
    objects: int  # how many there are to find
    floor: float  # the lowest score a detection can have

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
        """The threshold of the largest F1, half way from the last score kept to the next one.

        None if no object is ever hit.
        """
        cuts = self._cuts()
        if not len(cuts) or self.hits[-1] == 0:
            return None
        f1 = 2 * self.hits[cuts] / (cuts + 1 + self.objects)
        cut = int(cuts[int(np.argmax(f1))])
        return self._point(cut, (self.score[cut] + self._next(cut)) / 2)

    def lowest_with_precision(self, wanted: float) -> Point | None:
        """The lowest threshold with at least this precision; None if there is none."""
        cuts = self._cuts()
        enough = cuts[self.precision[cuts] >= wanted]
        if not len(enough):
            return None
        cut = int(enough[-1])
        return self._point(cut, self._next(cut))

    def at(self, thresholds: Values) -> tuple[Values, Values]:
        """Precision, NaN where nothing is kept, and recall of what is above each threshold."""
        kept = np.searchsorted(-self.score, -thresholds, "left")
        hits = np.concatenate([[0.0], self.hits])[kept]
        precision = np.divide(hits, kept, out=np.full(kept.shape, np.nan), where=kept > 0)
        return precision, hits / max(1, self.objects)

    def point(self, threshold: float) -> Point:
        """What is above a threshold; nothing has a precision of 0."""
        precision, recall = (float(v[0]) for v in self.at(np.array([threshold])))
        return Point(threshold, 0.0 if math.isnan(precision) else precision, recall)

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


BINS = 15


@dataclass(frozen=True)
class Bin:
    """Detections with scores in ((i − 1)/15, i/15]."""

    count: int
    score: float | None  # their mean; None if there are none
    precision: float | None  # the share that is right


@dataclass(frozen=True)
class Calibration:
    """Scores against precision."""

    # Expected calibration error, Σ countᵢ / n · |scoreᵢ − precisionᵢ| over 15 bins of equal width
    # (Guo et al., 2017); None without detections.
    error: float | None
    bins: tuple[Bin, ...]  # from the lowest scores to the highest


def calibrate(score: NDArray[np.float64], hit: NDArray[np.bool_]) -> Calibration:
    """Compare scores [n] with right or wrong [n]."""
    index = np.clip(np.ceil(score * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    scores = np.bincount(index, score, minlength=BINS)
    hits = np.bincount(index, hit, minlength=BINS)
    bins = tuple(
        Bin(int(n), float(s / n), float(h / n)) if n else Bin(0, None, None)
        for n, s, h in zip(counts, scores, hits, strict=True)
    )
    # countᵢ / n · |mean score − precision| = |sum of scores − hits| / n
    error = float(np.abs(scores - hits).sum() / len(score)) if len(score) else None
    return Calibration(error, bins)


def confusion_matrix(found: Boxes, truth: Boxes, classes: int) -> NDArray[np.int64]:
    """Count what is taken for what, boxes matched at IoU 0.5 whatever their classes.

    Crowd regions and what lies in them do not count; `found` is what is shown, from `best_first`.

    Returns:
        int64 [classes + 1, classes + 1]: rows are the truth, columns the prediction; the last
        row holds detections without an object, the last column objects without a detection.
    """
    matches = match(found, truth, by_class=False)
    counted, missed = ~matches.ignored, ~truth.crowd
    missed[matches.truth[matches.hit]] = False
    real = np.append(truth.label, classes)[matches.truth]  # −1 is background
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(matrix, (real[counted], found.label[counted]), 1)
    np.add.at(matrix[:, classes], truth.label[missed], 1)
    return matrix


def recommend(
    curves: Sequence[Curve],
    overall: Curve,
    fallback: float,
    target_precision: float,
    measured_on: str,
) -> tuple[Thresholds, Point]:
    """Return the thresholds, and what the overall one of the best F1 gives.

    `curves` are of each class, by class id, `overall` of all together; a model that hits nothing
    at all gets the threshold `fallback`.
    """
    best = overall.best_f1() or Point(fallback, 0.0, 0.0)
    precise, *by_class = (c.lowest_with_precision(target_precision) for c in (overall, *curves))
    thresholds = Thresholds(
        best_f1=best.threshold,
        # A class that is never hit takes the overall one.
        best_f1_per_class=tuple(
            (curve.best_f1() or best).threshold if curve.objects else None for curve in curves
        ),
        target_precision=target_precision,
        at_precision=precise.threshold if precise else None,
        at_precision_per_class=tuple(p.threshold if p else None for p in by_class),
        recall_at_precision=precise.recall if precise else None,
        recall_at_precision_per_class=tuple(p.recall if p else None for p in by_class),
        measured_on=measured_on,
    )
    return thresholds, best

"""Whether a score of 0.8 means right in 8 of 10 cases."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Detections with scores in ((i − 1)/15, i/15].

    Attributes:
        count: how many.
        score: their mean score; None if there are none.
        precision: share of them that is right; None if there are none.
    """

    count: int
    score: float | None
    precision: float | None


@dataclass(frozen=True)
class Calibration:
    """Scores against precision.

    Attributes:
        error: expected calibration error, Σ countᵢ / n · |scoreᵢ − precisionᵢ| over 15 bins of
            equal width (Guo et al., 2017); None without detections.
        bins: from the lowest scores to the highest.
    """

    error: float | None
    bins: tuple[Bin, ...]


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

"""How sure is it that one AP is higher than another, on the same images?

How much their difference changes when a fold of the images is left out says how much it depends on
the images (delete-a-group jackknife; Shao and Tu, The Jackknife and Bootstrap, 1995, section 2.3).
What makes an image hard for both cancels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.evaluation.scores import CocoScorer, Result

FOLDS = 10
LEAST_IMAGES = 4 * FOLDS
STUDENT_95 = 2.262  # two-sided, FOLDS - 1 degrees of freedom


class FoldScorer:
    """Scores results against a dataset whole, and without each fold of its images.

    Image i is of fold i modulo 10. With fewer than 40 images there are no folds.

    Raises:
        DataError: the dataset has no object to find.
        MissingExtraError: faster-coco-eval is not installed.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        self._whole = CocoScorer(dataset)
        self._without: list[tuple[set[int], CocoScorer]] = []
        for fold in range(FOLDS if len(dataset.samples) >= LEAST_IMAGES else 0):
            left = tuple(s for i, s in enumerate(dataset.samples) if i % FOLDS != fold)
            ids = {sample.image_id for sample in left}
            self._without.append((ids, CocoScorer(replace(dataset, samples=left))))

    def ap(self, results: Iterable[Result]) -> tuple[float, list[float]]:
        """AP, 0-1, of COCO results, and AP without each fold."""
        found = list(results)
        without = [
            scorer.ap(row for row in found if row["image_id"] in ids)
            for ids, scorer in self._without
        ]
        return self._whole.ap(found), without


def gap_bounds(
    of: float, to: float, of_without: Sequence[float], to_without: Sequence[float]
) -> tuple[float, float] | None:
    """Bounds of an AP minus another with 95 %, from both and those without folds."""
    if not of_without or len(of_without) != len(to_without):
        return None
    parts = np.subtract(of_without, to_without)
    n = len(parts)
    error = STUDENT_95 * float(np.sqrt((n - 1) / n * ((parts - parts.mean()) ** 2).sum()))
    return of - to - error, of - to + error

"""AP of a file in an engine, and how sure the difference of two is.

The images are left out a tenth at a time; how much the difference of two APs changes by that says
how much it depends on the images (delete-a-group jackknife; Shao and Tu, The Jackknife and
Bootstrap, 1995, section 2.3). Both are measured on the same images, so what makes an image hard
for both cancels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nmsfree.data.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.evaluate import Result, coco_metrics, predict

FOLDS = 10
STUDENT_95 = 2.262  # 97.5 % quantile of Student's t, FOLDS - 1 degrees of freedom


@dataclass(frozen=True)
class Accuracy:
    """COCO AP, 0-1.

    Attributes:
        images: it was measured on.
        without: AP with each tenth of the images left out; empty where there are too few.
    """

    ap: float
    ap50: float
    images: int
    without: tuple[float, ...] = ()


@dataclass(frozen=True)
class Gap:
    """AP of one thing minus that of another, 0-1, with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def between(cls, of: float, to: float, of_without: Sequence[float],
                to_without: Sequence[float]) -> "Gap":  # fmt: skip
        """From two APs and their `Accuracy.without`; without those the interval is all there is."""
        value = of - to
        if not of_without or len(of_without) != len(to_without):
            return cls(value, -1.0, 1.0)
        parts = np.subtract(of_without, to_without)
        n = len(parts)
        error = float(np.sqrt((n - 1) / n * ((parts - parts.mean()) ** 2).sum()))
        return cls(value, value - STUDENT_95 * error, value + STUDENT_95 * error)

    def to_json(self) -> dict[str, float]:
        return {"value": round(self.value, 5), "low": round(self.low, 5),
                "high": round(self.high, 5)}  # fmt: skip


def measure(
    detector: Detector,
    dataset: DetectionDataset,
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Run a detector over a dataset.

    Raises:
        DataError: classes differ, or a picture is not what the annotations say.
    """
    results = predict(detector, dataset, progress)
    metrics = coco_metrics(dataset, results)
    without = _without_tenths(dataset, results)
    return Accuracy(metrics.ap, metrics.ap50, len(dataset), without)


def _without_tenths(dataset: DetectionDataset, results: list[Result]) -> tuple[float, ...]:
    """AP of nine tenths of the images, ten times; none for fewer than 4 images in a tenth."""
    if len(dataset) < 4 * FOLDS:
        return ()
    fold_of = {sample.image_id: i % FOLDS for i, sample in enumerate(dataset.samples)}
    aps = []
    for fold in range(FOLDS):
        kept = tuple(s for s in dataset.samples if fold_of[s.image_id] != fold)
        found = [r for r in results if fold_of[r["image_id"]] != fold]
        aps.append(coco_metrics(replace(dataset, samples=kept), found).ap)
    return tuple(aps)

"""AP of a file in an engine, and how sure the difference of two is.

The images are left out a tenth at a time; how much the difference of two APs changes by that says
how much it depends on the images (delete-a-group jackknife; Shao and Tu, The Jackknife and
Bootstrap, 1995, section 2.3). Both are measured on the same images, so what makes an image hard
for both cancels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.evaluation.evaluate import Result, coco_metrics, predict
from nmsfree_benchmarks.record.intervals import Interval

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


def gap_interval(of: float, to: float, of_without: Sequence[float],
                 to_without: Sequence[float]) -> Interval:  # fmt: skip
    """An AP minus another, 0-1, from both and their `Accuracy.without`; no bounds without those."""
    value = of - to
    if not of_without or len(of_without) != len(to_without):
        return Interval(value)
    parts = np.subtract(of_without, to_without)
    n = len(parts)
    error = float(np.sqrt((n - 1) / n * ((parts - parts.mean()) ** 2).sum()))
    return Interval(value, value - STUDENT_95 * error, value + STUDENT_95 * error)


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

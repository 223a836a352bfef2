"""What NMS in plain operators is worth to a file: AP and duplicates without it and with it."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.evaluation.analysis import analyse, folder_name
from nmsfree.evaluation.evaluate import predict


@dataclass(frozen=True)
class Quality:
    """Of one file on labelled pictures.

    Attributes:
        ap: COCO's, 0 … 1.
        duplicates: boxes of a picture, on average, that overlap a better one of their class by an
            IoU above 0.7, at the threshold of the best F1.
        duplicates_at_floor: the same of all boxes above the score floor.
    """

    ap: float
    duplicates: float
    duplicates_at_floor: float


@dataclass(frozen=True)
class NmsEffect:
    """A file without NMS, and the same with it."""

    measured_on: str  # "digits val, 300 images"
    before: Quality
    after: Quality

    def __str__(self) -> str:
        a, b = self.before, self.after
        return (
            f"AP {100 * a.ap:.1f} → {100 * b.ap:.1f}, duplicates of a picture"
            f" {a.duplicates:.2f} → {b.duplicates:.2f} at the threshold of the best F1,"
            f" {a.duplicates_at_floor:.2f} → {b.duplicates_at_floor:.2f} above the floor; on"
            f" {self.measured_on}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_effect(
    without: Path, having: Path, dataset: DetectionDataset, progress: Callable[[str], None]
) -> NmsEffect:
    """Run both files over a dataset; DataError: no objects, or classes not those of the files."""
    before, after = (
        _quality(path, dataset, f"measuring AP {which} NMS", progress)
        for path, which in ((without, "without"), (having, "with"))
    )
    return NmsEffect(f"{folder_name(dataset)} {dataset.name}, {len(dataset)} images", before, after)


def _quality(
    path: Path, dataset: DetectionDataset, what: str, progress: Callable[[str], None]
) -> Quality:
    with closing(OnnxRuntimeBackend(path)) as backend:
        results = predict(
            Detector(backend),
            dataset,
            lambda done, total: progress(f"{what}: picture {done} of {total}"),
        )
        found = analyse(dataset, results, backend.spec)
    return Quality(found.metrics.ap, found.duplicates_per_image, found.duplicates_at_floor)

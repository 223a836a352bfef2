"""What another file, engine or NMS costs: AP and more of two models on a labelled split."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.backends.base import Backend
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.errors import GateError
from nmsfree.evaluation.analysis import analyse, folder_name
from nmsfree.evaluation.evaluate import predict

Progress = Callable[[int, int], None]


class Score(NamedTuple):
    """Of one model on one split.

    Duplicates are boxes of a picture, on average, that overlap a better one of their class by an
    IoU above 0.7.
    """

    ap: float  # COCO's, 0-1
    threshold: float  # score of the best F1
    duplicates: float  # at this threshold
    duplicates_at_floor: float  # of all boxes above the score floor


@dataclass(frozen=True)
class Accuracy:
    """Scores of two models on one split; the reference of an export is its FP32 version.

    In ONNX Runtime on the processor, FP16 shows the rounding of weights and activations, not a
    GPU's arithmetic.
    """

    measured_on: str  # "digits val, 300 images"
    ap_reference: float
    ap: float
    threshold_reference: float
    threshold: float
    max_drop: float  # AP, 0-1, that may be lost

    @classmethod
    def of(
        cls, reference: Score, judged: Score, dataset: DetectionDataset, max_drop: float
    ) -> "Accuracy":
        thresholds = reference.threshold, judged.threshold
        return cls(_about(dataset), reference.ap, judged.ap, *thresholds, max_drop)

    @property
    def ap_drop(self) -> float:
        """AP, 0-1, that is lost; negative where the other one is better."""
        return self.ap_reference - self.ap

    @property
    def passed(self) -> bool:
        return self.ap_drop <= self.max_drop

    def __str__(self) -> str:
        return (
            f"{100 * self.ap_reference:.1f} → {100 * self.ap:.1f} AP on {self.measured_on} (at "
            f"most {100 * self.max_drop:.1f} lost), threshold of the best F1 "
            f"{self.threshold_reference:.3f} → {self.threshold:.3f}"
        )

    def to_json(self) -> dict[str, object]:
        shift = self.threshold - self.threshold_reference
        own = {"ap_drop": self.ap_drop, "threshold_shift": shift, "passed": self.passed}
        return asdict(self) | own

    def enforce(self, advice: str = "") -> None:
        """Raise GateError if too much is lost; `advice` says what to do then."""
        if not self.passed:
            raise GateError(f"accuracy: {self}" + (f": {advice}" if advice else ""))


@dataclass(frozen=True)
class NmsEffect:
    """A file without NMS, and the same with it."""

    measured_on: str  # "digits val, 300 images"
    before: Score
    after: Score

    def __str__(self) -> str:
        a, b = self.before, self.after
        return (
            f"AP {100 * a.ap:.1f} → {100 * b.ap:.1f}, duplicates of a picture"
            f" {a.duplicates:.2f} → {b.duplicates:.2f} at the threshold of the best F1,"
            f" {a.duplicates_at_floor:.2f} → {b.duplicates_at_floor:.2f} above the floor; on"
            f" {self.measured_on}"
        )

    def to_json(self) -> dict[str, object]:
        return {
            "measured_on": self.measured_on,
            "before": self.before._asdict(),
            "after": self.after._asdict(),
        }


def _about(dataset: DetectionDataset) -> str:
    return f"{folder_name(dataset)} {dataset.name}, {len(dataset)} images"


def score(
    backend: Backend, dataset: DetectionDataset, progress: Progress = lambda done, total: None
) -> Score:
    """Run a model over a labelled split; DataError: no objects, or classes not the model's."""
    detector = Detector(backend)
    found = analyse(dataset, predict(detector, dataset, progress), detector.spec)
    duplicates = found.duplicates_per_image, found.duplicates_at_floor
    return Score(found.metrics.ap, found.thresholds.best_f1, *duplicates)


def measure(
    reference: Backend,
    judged: Backend,
    dataset: DetectionDataset,
    max_drop: float,
    progress: Progress = lambda done, total: None,
) -> Accuracy:
    """Run both models over a labelled split, as `score`; `max_drop` is of AP, 0-1."""
    n = len(dataset)
    first = score(reference, dataset, lambda done, _: progress(done, 2 * n))
    second = score(judged, dataset, lambda done, _: progress(n + done, 2 * n))
    return Accuracy.of(first, second, dataset, max_drop)


def measure_nms(
    without: Path, having: Path, dataset: DetectionDataset, progress: Callable[[str], None]
) -> NmsEffect:
    """Run both files over a labelled split, as `score`."""

    def of(path: Path, which: str) -> Score:
        def counting(done: int, total: int) -> None:
            progress(f"measuring AP {which} NMS: picture {done} of {total}")

        with closing(OnnxRuntimeBackend(path)) as backend:
            return score(backend, dataset, counting)

    return NmsEffect(_about(dataset), of(without, "without"), of(having, "with"))

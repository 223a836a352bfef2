"""Recommended score thresholds of a model, measured by `nmsfree eval` and kept in its file."""

from dataclasses import asdict, dataclass
from typing import Any

from nmsfree.decode import Share
from nmsfree.errors import ModelError

TARGET_PRECISION = 0.9


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Scores above which detections are worth showing, overall and for every class.

    A detection is kept if its score is above the threshold. Precision, recall and
    F1 = 2·precision·recall / (precision + recall) are those at IoU 0.5.

    Attributes:
        best_f1: threshold of the largest F1 over the detections of all classes together.
        best_f1_per_class: the same for each class, index = class id; None where the split has
            no object of the class.
        target_precision: the precision that the next four are about.
        at_precision: lowest threshold with at least that precision; None if there is none.
        at_precision_per_class: the same for each class.
        recall_at_precision: recall at `at_precision`; None where that is None.
        recall_at_precision_per_class: the same for each class.
        measured_on: what they were measured on, "digits val, 300 images, IoU 0.5".
    """

    best_f1: Share
    best_f1_per_class: tuple[Share | None, ...]
    target_precision: Share = TARGET_PRECISION
    at_precision: Share | None
    at_precision_per_class: tuple[Share | None, ...]
    recall_at_precision: Share | None
    recall_at_precision_per_class: tuple[Share | None, ...]
    measured_on: str

    def __post_init__(self) -> None:
        counts = {len(v) for k, v in vars(self).items() if k.endswith("_per_class")}
        if len(counts) != 1:
            raise ModelError(
                f"thresholds of {sorted(counts)} classes, expected one number of classes: "
                "measure them again with `nmsfree eval`"
            )

    def for_best_f1(self) -> tuple[float, ...]:
        """Return the best-F1 threshold of every class; the overall one for those without."""
        return tuple(self.best_f1 if t is None else t for t in self.best_f1_per_class)

    def for_precision(self) -> tuple[float, ...]:
        """Return the threshold of every class that reaches `target_precision`.

        It is 1, which no score passes, for a class that never reaches it. Of a class that had no
        object nothing is known: it takes the overall threshold.
        """
        overall = 1.0 if self.at_precision is None else self.at_precision
        pairs = zip(self.at_precision_per_class, self.best_f1_per_class, strict=True)
        return tuple(
            (overall if best is None else 1.0) if precise is None else precise
            for precise, best in pairs
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields, ready for `json.dumps`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

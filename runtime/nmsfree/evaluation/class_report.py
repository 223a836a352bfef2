"""The figures of one class."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nmsfree.evaluation.coco_scores import Scores
from nmsfree.evaluation.curves import Curve


@dataclass(frozen=True)
class ClassReport:
    """One class. AP and AP50 are None where the split has no object of it.

    Attributes:
        objects: how many there are, crowd regions left out.
        threshold: recommended for the class, see `Thresholds.best_f1_per_class`.
        precision, recall: of the class at its threshold; precision is None where nothing of it
            is above that.
    """

    name: str
    category_id: int
    objects: int
    ap: float | None
    ap50: float | None
    threshold: float | None
    precision: float | None
    recall: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields; AP under COCO's names."""
        values = asdict(self)
        values["AP"], values["AP50"] = values.pop("ap"), values.pop("ap50")
        return values


def class_report(
    name: str, category_id: int, curve: Curve, threshold: float | None, scores: Scores
) -> ClassReport:
    """Put together what is known of a class.

    Args:
        curve: its detections by score.
        threshold: recommended for it; None where it has no object.
        scores: COCO's of all classes.
    """
    precision = recall = None
    if threshold is not None:
        precision, recall = (float(v[0]) for v in curve.at(np.array([threshold])))
        precision = None if math.isnan(precision) else precision
    return ClassReport(
        name,
        category_id,
        curve.objects,
        scores.ap[category_id],
        scores.ap50[category_id],
        threshold,
        precision,
        recall,
    )

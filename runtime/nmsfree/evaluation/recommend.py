"""Which thresholds to recommend, from the curves of the classes."""

from collections.abc import Sequence

from nmsfree.evaluation.curves import Curve, Point
from nmsfree.thresholds import Thresholds


def recommend(
    curves: Sequence[Curve],
    overall: Curve,
    *,
    fallback: float,
    target_precision: float,
    measured_on: str,
) -> tuple[Thresholds, Point]:
    """Return the thresholds, and what the overall one of the best F1 gives.

    Args:
        curves: of each class, by class id.
        overall: of all classes together.
        fallback: the threshold of a model that hits nothing at all.
        target_precision, measured_on: see `Thresholds`.
    """
    best = overall.best_f1() or Point(fallback, 0.0, 0.0)
    precise = overall.lowest_with_precision(target_precision)
    precise_classes = [curve.lowest_with_precision(target_precision) for curve in curves]
    thresholds = Thresholds(
        best_f1=best.threshold,
        best_f1_per_class=tuple(_best_of_class(curve, best.threshold) for curve in curves),
        target_precision=target_precision,
        at_precision=precise.threshold if precise else None,
        at_precision_per_class=tuple(p.threshold if p else None for p in precise_classes),
        recall_at_precision=precise.recall if precise else None,
        recall_at_precision_per_class=tuple(p.recall if p else None for p in precise_classes),
        measured_on=measured_on,
    )
    return thresholds, best


def _best_of_class(curve: Curve, overall: float) -> float | None:
    """A class that is never hit has no best threshold of its own and takes the overall one."""
    if curve.objects == 0:
        return None
    best = curve.best_f1()
    return overall if best is None else best.threshold

"""Recommended score thresholds of a model, measured by `nmsfree eval` and kept in its file."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

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

    best_f1: float
    best_f1_per_class: tuple[float | None, ...]
    target_precision: float = TARGET_PRECISION
    at_precision: float | None
    at_precision_per_class: tuple[float | None, ...]
    recall_at_precision: float | None
    recall_at_precision_per_class: tuple[float | None, ...]
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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Thresholds":
        """Read what `to_json` returned; fields of a newer version are ignored.

        Raises:
            ModelError: a field is missing, or not what it should be.
        """
        if not isinstance(values, Mapping):
            raise ModelError(f"thresholds are {values!r}, expected what `nmsfree eval` writes")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise ModelError(
                f"thresholds lack {', '.join(missing)}: measure them again with `nmsfree eval`"
            )
        known = [f.name for f in fields(cls) if f.name in values]
        return cls(**{name: _read(name, values[name]) for name in known})


def _read(name: str, value: Any) -> Any:
    """Turn one JSON value into the field's type, or say what is wrong with it."""
    if name == "measured_on":
        return str(value)
    if name.endswith("_per_class"):
        if not isinstance(value, list | tuple):
            raise _wrong(name, value, "a list")
        return tuple(_number(name, v) for v in value)
    if value is None and name in ("best_f1", "target_precision"):
        raise _wrong(name, value, "a number from 0 to 1")
    return _number(name, value)


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    other = isinstance(value, bool) or not isinstance(value, int | float)
    if other or not 0 <= value <= 1:
        raise _wrong(name, value, "a number from 0 to 1")
    return float(value)


def _wrong(name: str, value: Any, expected: str) -> ModelError:
    return ModelError(
        f"threshold {name} is {value!r}, expected {expected}: "
        "measure the thresholds again with `nmsfree eval`"
    )

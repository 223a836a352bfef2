"""Everything `nmsfree eval` tells, from one set of COCO results."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.evaluation.boxes import Boxes, best_first, objects_of, read_boxes, to_results
from nmsfree.evaluation.curves import (
    Calibration,
    Curve,
    Point,
    calibrate,
    confusion_matrix,
    recommend,
)
from nmsfree.evaluation.evaluate import category_ids_of
from nmsfree.evaluation.matching import HIT_IOU, Matches, duplicates, match, survivors
from nmsfree.evaluation.scores import CocoScorer, Metrics, Result, Scores
from nmsfree.spec import TARGET_PRECISION, ModelSpec, Thresholds
from nmsfree.text import shown


@dataclass(frozen=True)
class ClassReport:
    """One class; AP and AP50 are None where the split has no object of it, which crowds are not.

    Precision and recall are those at its recommended threshold (`Thresholds.best_f1_per_class`);
    precision is None where nothing is above that.
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


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was measured of one model on one split.

    Attributes:
        best_f1_with_nms: the largest F1 of all classes together after the same NMS. AP hardly
            notices wrong detections below the right ones; who shows what is above a threshold does.
        duplicates_per_image: detections above `thresholds.best_f1` that overlap a better one of
            their class by IoU > 0.7; wrong ones hit no object of their own, as true ones do.
        cap_hits: images whose detections fill all rows of the output; None if that is not cut.
        per_class, curves: by class id; curves hold detections by score at IoU 0.5.
        confusion: int64 [classes + 1, classes + 1] at `thresholds.best_f1`; rows are the truth,
            columns the prediction, the last of each is background.
    """

    spec: ModelSpec
    split: str
    images: int
    objects: int  # how many there are; crowd regions are left out
    metrics: Metrics
    ap_with_nms: float  # AP after class-aware NMS (IoU 0.6) on top of the model's output
    thresholds: Thresholds  # recommended ones
    best: Point  # precision and recall at `thresholds.best_f1`
    best_f1_with_nms: float
    duplicates_per_image: float
    wrong_duplicates_per_image: float
    duplicates_at_floor: float  # duplicates per image among all detections
    cap_hits: int | None
    calibration: Calibration  # scores against precision at IoU 0.5, crowd regions left out
    per_class: tuple[ClassReport, ...]
    curves: tuple[Curve, ...]
    overall: Curve  # the curve of all classes together
    confusion: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Return all figures under flat names, ready for `json.dumps`."""
        return {
            **self.metrics.to_json(),
            "max_detections_per_class": self.metrics.max_detections,
            "AP_with_nms": self.ap_with_nms,
            "duplicates_per_image": self.duplicates_per_image,
            "wrong_duplicates_per_image": self.wrong_duplicates_per_image,
            "duplicates_per_image_at_floor": self.duplicates_at_floor,
            "cap_hits": self.cap_hits,
            "calibration_error": self.calibration.error,
            "F1": self.best.f1,
            "F1_with_nms": self.best_f1_with_nms,
            "precision": self.best.precision,
            "recall": self.best.recall,
            "images": self.images,
            "objects": self.objects,
            "class_names": list(self.spec.class_names),
            "thresholds": self.thresholds.to_json(),
            "per_class": [report.to_json() for report in self.per_class],
            "calibration": [asdict(b) for b in self.calibration.bins],
        }


def analyse(
    dataset: DetectionDataset,
    results: Sequence[Result],
    spec: ModelSpec,
    *,
    target_precision: float = TARGET_PRECISION,
    capped: bool = True,
) -> Analysis:
    """Measure a model by its results; no inference happens here.

    Args:
        results: everything above the model's score floor, in any order; see `predict`.
        target_precision: precision that `Thresholds.at_precision` must reach.
        capped: whether the results of an image are at most the `top_k` rows of the model's output;
            the published protocol keeps all of them.

    Raises:
        DataError: no objects, other classes, or results of another dataset.
        MissingExtraError: faster-coco-eval is not installed.
    """
    category_ids = category_ids_of(spec.class_names, dataset)
    image_ids = [sample.image_id for sample in dataset.samples]
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    scorer = CocoScorer(dataset)
    scores = scorer.score(results)
    truth = objects_of(dataset, labels)
    found = best_first(read_boxes(results, image_ids, labels))
    matches = match(found, truth)
    curves, overall = _curves(found, matches, truth, spec)
    thresholds, best = recommend(
        curves,
        overall,
        fallback=spec.threshold,
        target_precision=target_precision,
        measured_on=(
            f"{folder_name(dataset)} {dataset.name}, {len(dataset)} images, IoU {HIT_IOU}"
        ),
    )
    kept = found.select(survivors(found))
    _, overall_kept = _curves(kept, match(kept, truth), truth, spec)
    best_kept = overall_kept.best_f1()
    shown = found.score > best.threshold
    double = duplicates(found)
    counted = ~matches.ignored

    def per_image(flags: NDArray[np.bool_]) -> float:
        return int(flags.sum()) / len(dataset)

    return Analysis(
        spec=spec,
        split=dataset.name,
        images=len(dataset),
        objects=overall.objects,
        metrics=scores.metrics,
        ap_with_nms=scores.metrics.ap
        if len(kept) == len(found)
        else scorer.ap(to_results(kept, image_ids, category_ids)),
        thresholds=thresholds,
        best=best,
        best_f1_with_nms=best_kept.f1 if best_kept else 0.0,
        duplicates_per_image=per_image(double & shown),
        wrong_duplicates_per_image=per_image(double & shown & counted & ~matches.hit),
        duplicates_at_floor=per_image(double),
        cap_hits=int((np.bincount(found.image) >= spec.top_k).sum()) if capped else None,
        calibration=calibrate(found.score[counted], matches.hit[counted]),
        per_class=tuple(
            _class_report(*about, scores)
            for about in zip(
                spec.class_names, category_ids, curves, thresholds.best_f1_per_class, strict=True
            )
        ),
        curves=curves,
        overall=overall,
        confusion=confusion_matrix(found.select(shown), truth, len(spec.class_names)),
    )


def _class_report(
    name: str, category_id: int, curve: Curve, threshold: float | None, scores: Scores
) -> ClassReport:
    precision = recall = None
    if threshold is not None:
        precision, recall = (float(v[0]) for v in curve.at(np.array([threshold])))
        precision = None if math.isnan(precision) else precision
    ap, ap50 = scores.ap[category_id], scores.ap50[category_id]
    return ClassReport(name, category_id, curve.objects, ap, ap50, threshold, precision, recall)


def _curves(
    found: Boxes, matches: Matches, truth: Boxes, spec: ModelSpec
) -> tuple[tuple[Curve, ...], Curve]:
    """Return the curve of each class, and that of all together."""
    counted, hit = ~matches.ignored, matches.hit
    labels = range(len(spec.class_names))
    objects = np.bincount(truth.label[~truth.crowd], minlength=len(labels))
    masks = [counted & (found.label == label) for label in labels]
    curves = tuple(
        Curve.of(found.score[mask], hit[mask], int(count), spec.score_floor)
        for mask, count in zip(masks, objects, strict=True)
    )
    overall = Curve.of(found.score[counted], hit[counted], int(objects.sum()), spec.score_floor)
    return curves, overall


def folder_name(dataset: DetectionDataset) -> str:
    """Return the name of the dataset's own folder: "digits"."""
    return shown(dataset.root.resolve().name)

"""Everything `nmsfree eval` tells, from one set of COCO results."""

import math
from collections.abc import Iterator, Sequence
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
from nmsfree.evaluation.matching import HIT_IOU, Matches, duplicates, match, nested, survivors
from nmsfree.evaluation.scores import CocoScorer, Metrics, Result, Scores
from nmsfree.spec import TARGET_PRECISION, ModelSpec, Thresholds
from nmsfree.text import shown


@dataclass(frozen=True)
class ClassReport:
    """One class; precision and recall are those at its recommended threshold."""

    name: str
    category_id: int
    objects: int  # crowd regions are none
    ap: float | None  # ap, ap50: None without an object
    ap50: float | None
    threshold: float | None  # of `Thresholds.best_f1_per_class`
    precision: float | None  # None where nothing is above the threshold
    recall: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields; AP under COCO's names."""
        names = {"ap": "AP", "ap50": "AP50"}
        return {names.get(field, field): value for field, value in vars(self).items()}


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was measured of one model on one split."""

    spec: ModelSpec
    split: str
    images: int
    objects: int  # how many there are; crowd regions are left out
    most_objects: int  # in one image
    metrics: Metrics
    ap_with_nms: float  # AP after class-aware NMS (IoU 0.6) on top of the model's output
    thresholds: Thresholds  # recommended ones
    best: Point  # precision and recall at `thresholds.best_f1`
    own: Point  # at the file's own threshold, which was not chosen on this split
    # The largest F1 of all classes together after the same NMS. AP hardly notices wrong detections
    # below the right ones; who shows what is above a threshold does.
    best_f1_with_nms: float
    # Detections above `thresholds.best_f1` that overlap a better one of their class by IoU > 0.7;
    # wrong ones hit no object of their own, as true ones do.
    duplicates_per_image: float
    wrong_duplicates_per_image: float
    duplicates_above_half: float  # per image above the threshold, by IoU > 0.5
    nested_pairs: float  # per image above the threshold, see `matching.nested`
    duplicates_at_floor: float  # duplicates per image among all detections
    cap_hits: int | None  # images that fill all rows of the output; None if that is not cut
    truncated: int | None  # those of them whose rows are all above `thresholds.best_f1`
    calibration: Calibration  # scores against precision at IoU 0.5, crowd regions left out
    per_class: tuple[ClassReport, ...]  # per_class, curves: by class id
    curves: tuple[Curve, ...]  # detections by score at IoU 0.5
    overall: Curve  # the curve of all classes together
    # [classes + 1, classes + 1] at `thresholds.best_f1`; rows are the truth, columns the
    # prediction, the last of each is background
    confusion: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Return all figures under flat names, ready for `json.dumps`."""
        return {
            **self.metrics.to_json(),
            "max_detections_per_class": self.metrics.max_detections,
            "AP_with_nms": self.ap_with_nms,
            "duplicates_per_image": self.duplicates_per_image,
            "wrong_duplicates_per_image": self.wrong_duplicates_per_image,
            "duplicates_per_image_iou50": self.duplicates_above_half,
            "nested_pairs_per_image": self.nested_pairs,
            "duplicates_per_image_at_floor": self.duplicates_at_floor,
            "cap_hits": self.cap_hits,
            "truncated": self.truncated,
            "calibration_error": self.calibration.error,
            "F1": self.best.f1,
            "F1_with_nms": self.best_f1_with_nms,
            "file_threshold": self.own.threshold,
            "F1_at_file_threshold": self.own.f1,
            "precision": self.best.precision,
            "recall": self.best.recall,
            "images": self.images,
            "objects": self.objects,
            "most_objects_in_an_image": self.most_objects,
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
    tiled: bool = False,
) -> Analysis:
    """Measure a model by its results; no inference happens here.

    Args:
        results: everything above the model's score floor, in any order; see `predict`.
        target_precision: precision that `Thresholds.at_precision` must reach.
        capped: results are at most `top_k` an image; tiles and the published protocol keep all.
        tiled: results are of many tiles an image, see `Metrics`.

    Raises:
        DataError: no objects, other classes, or results of another dataset.
    """
    category_ids = category_ids_of(spec.class_names, dataset)
    image_ids = [sample.image_id for sample in dataset.samples]
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    scorer = CocoScorer(dataset, tiled=tiled)
    scores = scorer.score(results)
    truth = objects_of(dataset, labels)
    found = best_first(read_boxes(results, image_ids, labels))
    matches = match(found, truth)
    overall = _curve(spec, found, matches, truth)
    curves = tuple(_curve(spec, found, matches, truth, label) for label in labels.values())
    about = f"{folder_name(dataset)} {dataset.name}, {len(dataset)} images, IoU {HIT_IOU}"
    thresholds, best = recommend(curves, overall, spec.threshold, target_precision, about)
    kept = found.select(survivors(found))
    best_kept = _curve(spec, kept, match(kept, truth), truth).best_f1()
    of_kept = to_results(kept, image_ids, category_ids) if len(kept) < len(found) else None
    above, counted, double = found.score > best.threshold, ~matches.ignored, duplicates(found)
    shown = found.select(above)
    return Analysis(
        spec=spec,
        split=dataset.name,
        images=len(dataset),
        objects=overall.objects,
        most_objects=int(np.bincount(truth.image[~truth.crowd]).max()),
        metrics=scores.metrics,
        ap_with_nms=scores.metrics.ap if of_kept is None else scorer.ap(of_kept),
        thresholds=thresholds,
        best=best,
        own=overall.point(spec.threshold),
        best_f1_with_nms=best_kept.f1 if best_kept else 0.0,
        duplicates_per_image=int((double & above).sum()) / len(dataset),
        wrong_duplicates_per_image=int((double & above & counted & ~matches.hit).sum())
        / len(dataset),
        duplicates_above_half=int(duplicates(shown, HIT_IOU).sum()) / len(dataset),
        nested_pairs=nested(shown) / len(dataset),
        duplicates_at_floor=int(double.sum()) / len(dataset),
        cap_hits=_full(found, spec) if capped else None,
        truncated=_full(shown, spec) if capped else None,
        calibration=calibrate(found.score[counted], matches.hit[counted]),
        per_class=tuple(_class_reports(spec, category_ids, curves, thresholds, scores)),
        curves=curves,
        overall=overall,
        confusion=confusion_matrix(shown, truth, len(labels)),
    )


def _full(found: Boxes, spec: ModelSpec) -> int:
    """Count the images with as many boxes as the output has rows."""
    return int((np.bincount(found.image) >= spec.top_k).sum())


def _class_reports(
    spec: ModelSpec, ids: Sequence[int], curves: Sequence[Curve], advice: Thresholds, scores: Scores
) -> Iterator[ClassReport]:
    classes = zip(spec.class_names, ids, curves, advice.best_f1_per_class, strict=True)
    for name, number, curve, threshold in classes:
        precision = recall = None
        if threshold is not None:
            precision, recall = (float(v[0]) for v in curve.at(np.array([threshold])))
            precision = None if math.isnan(precision) else precision
        ap, ap50 = scores.ap[number], scores.ap50[number]
        yield ClassReport(name, number, curve.objects, ap, ap50, threshold, precision, recall)


def _curve(
    spec: ModelSpec, found: Boxes, matches: Matches, truth: Boxes, label: int | None = None
) -> Curve:
    """The curve of a class, or of all classes together."""
    own, objects = ~matches.ignored, ~truth.crowd
    if label is not None:
        own, objects = own & (found.label == label), objects & (truth.label == label)
    return Curve.of(found.score[own], matches.hit[own], int(objects.sum()), spec.score_floor)


def folder_name(dataset: DetectionDataset) -> str:
    """Return the name of the dataset's own folder: "digits"."""
    return shown(dataset.root.resolve().name)

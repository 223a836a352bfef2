"""COCO metrics of results against the annotations of a dataset, by faster-coco-eval."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.data.coco import DetectionDataset
from nmsfree.data.load import ground_truth
from nmsfree.errors import DataError, import_extra

Result = dict[str, Any]  # image_id, category_id, bbox xywh in source pixels, score


@dataclass(frozen=True)
class Metrics:
    """COCO box metrics, 0 … 1, over at most 100 detections of a class in an image.

    None stands for an average over nothing: no object of that size in the split, or not measured.

    Attributes:
        ap: average precision, mean over the IoU thresholds 0.50, 0.55 … 0.95 and the classes.
        ap50, ap75: at one IoU threshold.
        ap_small, ap_medium, ap_large: of objects with an area below 32², up to 96², above.
        ar100: average recall with 100 detections of a class in an image.
        ar1, ar10: with 1 and with 10.
        ar_small, ar_medium, ar_large: with 100, by size of the object.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar100: float
    ar1: float | None = None
    ar10: float | None = None
    ar_small: float | None = None
    ar_medium: float | None = None
    ar_large: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Return the metrics under the names that COCO uses, ready for `json.dumps`."""
        return {
            "AP": self.ap,
            "AP50": self.ap50,
            "AP75": self.ap75,
            "APs": self.ap_small,
            "APm": self.ap_medium,
            "APl": self.ap_large,
            "AR1": self.ar1,
            "AR10": self.ar10,
            "AR100": self.ar100,
            "ARs": self.ar_small,
            "ARm": self.ar_medium,
            "ARl": self.ar_large,
        }


@dataclass(frozen=True)
class Scores:
    """Metrics of all classes together, and AP and AP50 by category id (None: no object)."""

    metrics: Metrics
    ap: dict[int, float | None]
    ap50: dict[int, float | None]


class CocoScorer:
    """Scores any number of results against one dataset.

    Only the images in `dataset.samples` count, so a shortened dataset gives its own metrics.
    Areas and crowd regions are those of the annotation file, as in the official evaluation.

    Args:
        dataset: the annotations to compare with.

    Raises:
        DataError: the dataset has no object to find.
        MissingExtraError: faster-coco-eval is not installed.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        coco_class, self._evaluation_class = import_coco()
        if not any((~sample.iscrowd).any() for sample in dataset.samples):
            raise DataError(f"{dataset.annotation_file} has no objects to find: AP is undefined")
        self.truth: dict[str, Any] = ground_truth(dataset)
        self._image_ids = [sample.image_id for sample in dataset.samples]
        self._coco = coco_class(self.truth, print_function=_silent)
        self._known = {int(image["id"]) for image in self.truth["images"]}
        self._source = dataset.annotation_file

    def score(self, results: Iterable[Result]) -> Scores:
        """Compare results, in any order, with the annotations.

        Raises:
            DataError: a result names an image that the annotations do not have.
        """
        evaluation = self._evaluate(results)
        evaluation.summarize()
        ap, ap50, ap75, *sizes = (_defined(float(v)) for v in evaluation.stats[:12])
        ap_small, ap_medium, ap_large, ar1, ar10, ar100, ar_small, ar_medium, ar_large = sizes
        assert ap is not None and ap50 is not None and ap75 is not None and ar100 is not None
        metrics = Metrics(
            ap, ap50, ap75, ap_small, ap_medium, ap_large, ar100, ar1, ar10,
            ar_small, ar_medium, ar_large,
        )  # fmt: skip
        # precision: [IoU, recall, class, area, detections]; all areas come first, 100 last.
        precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
        ids = [int(i) for i in evaluation.params.catIds]
        return Scores(metrics, _by_class(ids, precision), _by_class(ids, precision[:1]))

    def ap(self, results: Iterable[Result]) -> float:
        """Return AP alone, quicker than `score`."""
        evaluation = self._evaluate(results, areas=1)
        precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
        return float(precision[precision > -1].mean())

    def _evaluate(self, results: Iterable[Result], areas: int | None = None) -> Any:
        # In this order even equal scores come out alike, however the results were gathered.
        ordered = sorted(
            results, key=lambda r: (r["image_id"], -r["score"], r["category_id"], r["bbox"])
        )
        unknown = next((r for r in ordered if r["image_id"] not in self._known), None)
        if unknown is not None:
            raise DataError(
                f"a result names image {unknown['image_id']}, which {self._source} does not have: "
                "these are the results of another dataset"
            )
        # With an outline given, none is made up for every box.
        found = self._coco.loadRes([r | {"segmentation": []} for r in ordered])
        evaluation = self._evaluation_class(
            self._coco, found, "bbox", print_function=_silent, extra_calc=False
        )
        evaluation.params.imgIds = self._image_ids
        evaluation.params.areaRng = evaluation.params.areaRng[:areas]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


def import_coco() -> tuple[Any, Any]:
    """Return the classes COCO and COCOeval_faster.

    Raises:
        MissingExtraError: faster-coco-eval is not installed.
    """
    package = import_extra("faster_coco_eval", "computing AP", "nmsfree[eval]")
    return package.COCO, package.COCOeval_faster


def _by_class(ids: list[int], precision: NDArray[np.float64]) -> dict[int, float | None]:
    """Mean over IoU and recall of precision [IoU, recall, class]; −1 marks a class not there."""
    means = precision.mean(axis=(0, 1))
    return {i: None if mean < 0 else float(mean) for i, mean in zip(ids, means, strict=True)}


def _silent(*_: object) -> None:
    """Take what faster-coco-eval would print."""


def _defined(value: float) -> float | None:
    """Return None for −1, COCO's mark of an average over nothing."""
    return None if value < 0 else value

"""COCO metrics of results against the annotations of a dataset, by faster-coco-eval.

Images, classes and objects are numbered from 1 for it, in the order of their ids: it computes with
floats, which cannot hold large ones.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import DataError, import_extra

logger = logging.getLogger(__name__)

COUNTED = (1, 10, 100)  # detections of a class in an image, by the best scores

NAMES = {
    "AP": "ap", "AP50": "ap50", "AP75": "ap75",
    "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large",
    "AR1": "ar1", "AR10": "ar10", "AR100": "ar100",
    "ARs": "ar_small", "ARm": "ar_medium", "ARl": "ar_large",
}  # fmt: skip

Result = dict[str, Any]  # image_id, category_id, bbox xywh in source pixels, score


@dataclass(frozen=True)
class Metrics:
    """COCO box metrics, 0 … 1, over at most 100 detections of a class in an image.

    Where an image of the dataset holds more than 100 objects of a class, or images are cut into
    tiles, AP takes all detections: with 100 of them no detector could reach 1, or the rows of many
    tiles would be cut where those of a few are not. The recalls stay as COCO defines them.

    AP is the mean over the IoU thresholds 0.50, 0.55 … 0.95 and the classes; small, medium and
    large are areas below 32², up to 96² and above; AR1, AR10 and AR100 are average recalls with so
    many detections of a class in an image. None stands for an average over nothing: no object of
    that size in the split, or not measured. `max_detections`: of a class in an image for AP.
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
    max_detections: int = COUNTED[-1]

    def to_json(self) -> dict[str, float | None]:
        """Return the metrics under the names that COCO uses, ready for `json.dumps`."""
        return {name: getattr(self, field) for name, field in NAMES.items()}


@dataclass(frozen=True)
class Scores:
    """Metrics of all classes together, and AP and AP50 by category id (None: no object)."""

    metrics: Metrics
    ap: dict[int, float | None]
    ap50: dict[int, float | None]


class CocoScorer:
    """Scores any number of results against one dataset.

    Only the images in `dataset.samples` count, so a shortened dataset gives its own metrics.
    Areas and crowd regions are those of the annotation file, as in the official evaluation. If
    `tiled`, AP takes all detections, see `Metrics`.

    Raises:
        DataError: the dataset has no object to find.
        MissingExtraError: faster-coco-eval is not installed.
    """

    def __init__(self, dataset: DetectionDataset, *, tiled: bool = False) -> None:
        coco_class, self._evaluation_class = import_coco()
        if not any((~sample.iscrowd).any() for sample in dataset.samples):
            raise DataError(f"{dataset.annotation_file} has no objects to find: AP is undefined")
        self._dataset, self._tiled = dataset, tiled
        self._numbers = {image_id: n for n, image_id in enumerate(dataset.image_ids, start=1)}
        self._classes = {category_id: n for n, category_id in enumerate(dataset.category_ids, 1)}
        self._coco = coco_class(self._truth(), print_function=_silent)
        self.most = max(
            int(np.bincount(s.labels[~s.iscrowd], minlength=1).max()) for s in dataset.samples
        )
        if self.most > COUNTED[-1]:
            logger.warning(
                "%s: an image holds %d objects of one class, more than COCO's %d detections: AP "
                "takes all detections",
                dataset.annotation_file,
                self.most,
                COUNTED[-1],
            )

    def score(self, results: Iterable[Result]) -> Scores:
        """Compare results, in any order, with the annotations.

        DataError if one names an image or class that those do not have, or is not finite.
        """
        evaluation = self._evaluate(results)
        # precision: [IoU, recall, class, area, detections]; all areas come first, all counted last.
        precision = np.asarray(evaluation.eval["precision"])
        recall = np.asarray(evaluation.eval["recall"])  # [IoU, class, area, detections]
        ap, ap50, ap75 = (_mean(precision[i, :, :, 0, -1]) for i in (slice(None), 0, 5))
        ap_small, ap_medium, ap_large = (_mean(precision[:, :, :, i, -1]) for i in (1, 2, 3))
        ar1, ar10, ar100 = (_mean(recall[:, :, 0, i]) for i in range(3))
        ar_small, ar_medium, ar_large = (_mean(recall[:, :, i, 2]) for i in (1, 2, 3))
        assert ap is not None and ap50 is not None and ap75 is not None and ar100 is not None
        metrics = Metrics(
            ap, ap50, ap75, ap_small, ap_medium, ap_large, ar100, ar1, ar10,
            ar_small, ar_medium, ar_large, int(evaluation.params.maxDets[-1]),
        )  # fmt: skip
        ids = self._dataset.category_ids
        every = precision[:, :, :, 0, -1]
        return Scores(metrics, _by_class(ids, every), _by_class(ids, every[:1]))

    def ap(self, results: Iterable[Result]) -> float:
        """Return AP alone, quicker than `score`."""
        evaluation = self._evaluate(results, areas=1)
        ap = _mean(np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1])
        assert ap is not None
        return ap

    def _evaluate(self, results: Iterable[Result], areas: int | None = None) -> Any:
        # In this order even equal scores come out alike, however the results were gathered.
        rows = sorted(
            self._numbered(results),
            key=lambda r: (r["image_id"], -r["score"], r["category_id"], r["bbox"]),
        )
        found = self._coco.loadRes(rows)
        evaluation = self._evaluation_class(
            self._coco, found, "bbox", print_function=_silent, extra_calc=False
        )
        params = evaluation.params
        params.imgIds = [self._numbers[sample.image_id] for sample in self._dataset.samples]
        params.areaRng = params.areaRng[:areas]
        params.maxDets = list(COUNTED)
        longest = Counter((r["image_id"], r["category_id"]) for r in rows).most_common(1)
        most = max(self.most, *(count for _, count in longest), 0)
        if self.most > COUNTED[-1] or (self._tiled and most > COUNTED[-1]):
            params.maxDets.append(most)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation

    def _numbered(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yield results under our own numbers, fit for the library to change."""
        for row in results:
            image, category = row["image_id"], row["category_id"]
            if image not in self._numbers or category not in self._classes:
                what = f"category {category}" if image in self._numbers else f"image {image}"
                raise DataError(
                    f"a result names {what}, which {self._dataset.annotation_file} "
                    "does not have: these are the results of another dataset"
                )
            if not all(map(math.isfinite, (row["score"], *row["bbox"]))):
                raise DataError(
                    f"a result of image {image} has the score {row['score']} and the box "
                    f"{row['bbox']}, expected finite numbers: what the model computes is broken"
                )
            yield {
                "image_id": self._numbers[image],
                "category_id": self._classes[category],
                "bbox": row["bbox"],
                "score": row["score"],
                "segmentation": [],  # with an outline given, none is made up for every box
            }

    def _truth(self) -> dict[str, Any]:
        """Return the annotations as COCO instances."""
        samples = self._dataset.samples
        objects = [
            {
                "image_id": self._numbers[sample.image_id],
                "category_id": label + 1,
                "bbox": bbox.tolist(),
                "area": area,
                "iscrowd": int(crowd),
            }
            for sample in samples
            for label, bbox, area, crowd in zip(
                sample.labels.tolist(),
                sample.xywh,
                sample.area.tolist(),
                sample.iscrowd,
                strict=True,
            )
        ]
        return {
            "images": [{"id": number} for number in self._numbers.values()],
            "categories": [{"id": number} for number in self._classes.values()],
            "annotations": [row | {"id": n} for n, row in enumerate(objects, start=1)],
        }


def import_coco() -> tuple[Any, Any]:
    """Return the classes COCO and COCOeval_faster; MissingExtraError without faster-coco-eval."""
    package = import_extra("faster_coco_eval", "computing AP", "nmsfree[eval]")
    return package.COCO, package.COCOeval_faster


def _by_class(ids: tuple[int, ...], precision: NDArray[np.float64]) -> dict[int, float | None]:
    """Mean over IoU and recall of precision [IoU, recall, class]; None for a class not there."""
    return {i: _mean(precision[:, :, label]) for label, i in enumerate(ids)}


def _silent(*_: object) -> None:
    """Take what faster-coco-eval would print."""


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of what is defined; −1 is COCO's mark of what is not."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None

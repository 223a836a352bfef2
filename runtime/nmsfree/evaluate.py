"""COCO metrics of a detector, measured on the pixels and the file that are deployed."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.data.coco import DetectionDataset, Sample
from nmsfree.detector import Detector
from nmsfree.errors import DataError, MissingExtraError
from nmsfree.images import read_image

CHUNK = 16  # images held in memory at a time

Progress = Callable[[int, int], None]  # images done, images in all
Result = dict[str, Any]  # image_id, category_id, bbox xywh in source pixels, score


@dataclass(frozen=True)
class Metrics:
    """COCO box metrics, 0 … 1, over at most 100 detections an image.

    Attributes:
        ap: average precision, mean over the IoU thresholds 0.50, 0.55 … 0.95 and the classes.
        ap50, ap75: at one IoU threshold.
        ap_small, ap_medium, ap_large: of objects with an area below 32², up to 96², above;
            None where the split has no such object.
        ar100: average recall with 100 detections an image.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar100: float

    def to_json(self) -> dict[str, float | None]:
        """Return the metrics under the names that COCO uses, ready for `json.dumps`."""
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
        return dict(zip(names, asdict(self).values(), strict=True))


def evaluate(
    detector: Detector, dataset: DetectionDataset, *, progress: Progress | None = None
) -> Metrics:
    """Run a detector over a dataset and compare with its annotations.

    Raises:
        DataError: classes of model and dataset differ, or a picture is not what the
            annotations say.
        InputError: a picture cannot be read.
        MissingExtraError: faster-coco-eval is not installed.
    """
    _import_coco()  # fail before the work, not after it
    return coco_metrics(dataset, predict(detector, dataset, progress))


def predict(
    detector: Detector, dataset: DetectionDataset, progress: Progress | None = None
) -> list[Result]:
    """Return everything above the model's score floor as COCO results.

    Args:
        detector: a model whose class names are those of the dataset, in any order.
        dataset: images to run on.
        progress: called as (done, total) while it runs.
    """
    category_ids = _category_ids(detector.spec.class_names, dataset)
    results: list[Result] = []
    for start in range(0, len(dataset.samples), CHUNK):
        samples = dataset.samples[start : start + CHUNK]
        images = [_read(sample) for sample in samples]
        found = detector.batch(images, threshold=detector.spec.score_floor)
        for sample, detections in zip(samples, found, strict=True):
            categories = category_ids[detections.class_id]
            results += _to_results(
                sample.image_id, detections.xyxy, categories, detections.confidence
            )
        if progress is not None:
            progress(start + len(samples), len(dataset.samples))
    return results


def coco_metrics(dataset: DetectionDataset, results: list[Result]) -> Metrics:
    """Score COCO results against the annotation file of a dataset.

    Only the images in `dataset.samples` count, so a shortened dataset gives its own metrics.
    Areas and crowd regions are those of the annotation file, as in the official evaluation.

    Raises:
        DataError: the dataset has no object to find.
        MissingExtraError: faster-coco-eval is not installed.
    """
    coco_class, evaluation_class = _import_coco()
    image_ids = [sample.image_id for sample in dataset.samples]
    if not any((~sample.iscrowd).any() for sample in dataset.samples):
        raise DataError(f"{dataset.annotation_file} has no objects to find: AP is undefined")
    truth = coco_class(_ground_truth(dataset), print_function=_silent)
    evaluation = evaluation_class(
        truth, truth.loadRes([dict(r) for r in results]), "bbox", print_function=_silent
    )
    evaluation.params.imgIds = image_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ap, ap50, ap75, small, medium, large, _, _, ar100 = (float(v) for v in evaluation.stats[:9])
    return Metrics(ap, ap50, ap75, _defined(small), _defined(medium), _defined(large), ar100)


def _import_coco() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise MissingExtraError("computing AP", "nmsfree[eval]") from None
    return COCO, COCOeval_faster


def _silent(*_: object) -> None:
    """Take what faster-coco-eval would print."""


def _defined(value: float) -> float | None:
    """Return None for −1, COCO's mark of an average over nothing."""
    return None if value < 0 else value


def _ground_truth(dataset: DetectionDataset) -> dict[str, Any]:
    """Read the annotation file again and fill in what the evaluation needs but COCO readers
    tolerate missing: area, iscrowd, and ids from 1 (0 reads as "unmatched")."""
    content: dict[str, Any] = json.loads(dataset.annotation_file.read_text(encoding="utf-8"))
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return content


def _category_ids(model_names: tuple[str, ...], dataset: DetectionDataset) -> NDArray[np.int64]:
    """Return the dataset's category id of every class id of the model."""
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    if sorted(model_names) != sorted(dataset.class_names):
        missing = sorted(ids.keys() - set(model_names))
        extra = sorted(set(model_names) - ids.keys())
        raise DataError(
            f"classes differ: the model has {len(model_names)}, {dataset.annotation_file} has "
            f"{len(ids)}; only in the model: {_shown(extra)}; only in the data: {_shown(missing)}"
        )
    return np.array([ids[name] for name in model_names], dtype=np.int64)


def _shown(names: list[str]) -> str:
    return (", ".join(names[:5]) + (", …" if len(names) > 5 else "")) or "none"


def _read(sample: Sample) -> NDArray[np.uint8]:
    image = read_image(sample.path)
    height, width = image.shape[:2]
    if (height, width) != (sample.height, sample.width):
        raise DataError(
            f"{sample.path} is {width} × {height} pixels, its annotations say "
            f"{sample.width} × {sample.height}: boxes would not fit"
        )
    return image


def _to_results(
    image_id: int,
    xyxy: NDArray[np.float32],
    categories: NDArray[np.int64],
    confidence: NDArray[np.float32],
) -> list[Result]:
    boxes = xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes.tolist(), categories.tolist(), confidence.tolist(), strict=True)
    return [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        for box, category, score in rows
    ]

"""COCO metrics of a detector, measured on the pixels and the file that are deployed."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset, Sample
from nmsfree.detector import Detector
from nmsfree.errors import DataError, InputError
from nmsfree.evaluation.scores import CocoScorer, Metrics, Result, import_coco
from nmsfree.images import read_image
from nmsfree.nms import overlapping
from nmsfree.spec import NmsSpec
from nmsfree.tiles import WHOLE, Tiling

CHUNK = 16  # images held in memory at a time

Progress = Callable[[int, int], None]  # images done, images in all


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
    import_coco()  # fail before the work, not after it
    return coco_metrics(dataset, predict(detector, dataset, progress))


def predict(
    detector: Detector,
    dataset: DetectionDataset,
    progress: Progress | None = None,
    tiling: Tiling = WHOLE,
) -> list[Result]:
    """Return everything above the model's score floor as COCO results.

    The class names are those of the dataset, in any order; `progress` gets (done, total).
    """
    floor = detector.spec.score_floor
    adopted = "adopted" in detector.spec.provenance
    category_ids = category_ids_of(detector.spec.class_names, dataset, adopted=adopted)
    results: list[Result] = []
    for start in range(0, len(dataset.samples), CHUNK):
        samples = dataset.samples[start : start + CHUNK]
        try:
            images = [read_image(sample.path) for sample in samples]
        except InputError as error:
            raise InputError(f"{error}; `nmsfree data check` lists all such pictures") from None
        for sample, image in zip(samples, images, strict=True):
            check_size(sample, *image.shape[:2])
        if tiling.tile is None:
            found = detector.batch(images, threshold=floor)
        else:
            found = [detector.tiled(image, **vars(tiling), threshold=floor) for image in images]
        for sample, detections in zip(samples, found, strict=True):
            results += detections.to_coco(sample.image_id, category_ids)
        if progress is not None:
            progress(start + len(samples), len(dataset.samples))
    return results


def count_overlapping(results: list[Result], nms: NmsSpec) -> int:
    """Images whose rows overlap by more than the model's own NMS allows, see `overlapping`."""
    images: dict[int, list[Result]] = {}
    for result in results:
        images.setdefault(result["image_id"], []).append(result)
    found = 0
    for rows in images.values():
        rows.sort(key=lambda row: -row["score"])
        boxes = np.array([row["bbox"] for row in rows], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([row["category_id"] for row in rows])
        found += overlapping(boxes, labels, nms.iou, nms.class_aware)
    return found


def coco_metrics(dataset: DetectionDataset, results: list[Result]) -> Metrics:
    """Score COCO results, in any order, against a dataset; see `CocoScorer.score`."""
    return CocoScorer(dataset).score(results).metrics


def category_ids_of(
    model_names: tuple[str, ...], dataset: DetectionDataset, *, adopted: bool = False
) -> tuple[int, ...]:
    """Return the dataset's category id of every class id of the model."""
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    if sorted(model_names) != sorted(dataset.class_names):
        missing = sorted(ids.keys() - set(model_names), key=_by_number)
        extra = sorted(set(model_names) - ids.keys(), key=_by_number)
        what = "adopt it again with --classes to keep some of its classes, --rename to rename them"
        raise DataError(
            f"classes differ: the model has {len(model_names)}, {dataset.annotation_file} has "
            f"{len(ids)}; only in the model: {_shown(extra)}; only in the data: {_shown(missing)}"
            f"{f'; {what}' if adopted else ''}"
        )
    return tuple(ids[name] for name in model_names)


def _by_number(name: str) -> str:
    return re.sub(r"\d+", lambda digits: digits[0].zfill(9), name)  # "thing 2" before "thing 10"


def _shown(names: list[str]) -> str:
    return ", ".join([*names[:5], *["…"][: len(names) > 5]]) or "none"


def check_size(sample: Sample, height: int, width: int) -> None:
    """Refuse, by a DataError, a picture of another size than its annotations say."""
    if (height, width) != (sample.height, sample.width):
        raise DataError(
            f"{sample.path} is {width} × {height} pixels, its annotations say "
            f"{sample.width} × {sample.height}: boxes would not fit"
        )


def coco_results(
    image_id: int,
    xyxy: NDArray[np.float32],
    categories: Sequence[int],
    confidence: NDArray[np.float32],
) -> list[Result]:
    """Return the detections of one image as COCO results.

    Ids and categories [n] are the dataset's own, which may be larger than any array holds; boxes
    are float32 [n, 4] in source pixels, confidences float32 [n].
    """
    boxes = xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes.tolist(), categories, confidence.tolist(), strict=True)
    return [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        for box, category, score in rows
    ]

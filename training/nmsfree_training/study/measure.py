"""What a trained network reaches: both heads, with NMS at many thresholds and without."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset, Sample
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.evaluation.analysis import Analysis, analyse
from nmsfree.evaluation.boxes import best_first, read_boxes, to_results
from nmsfree.evaluation.evaluate import CHUNK, Result, category_ids_of, check_size, coco_results
from nmsfree.evaluation.matching import NMS_IOU, survivors
from nmsfree.evaluation.scores import CocoScorer
from nmsfree.images import read_image
from nmsfree.nms import suppress
from nmsfree.preprocess import Geometry, letterbox
from nmsfree_training.config import HeadName
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.norms import normalize
from nmsfree_training.study.results import NMS_GRID, grid_key
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint
from nmsfree_training.weights.predict import TOP_K, PostprocessConfig, make_spec, postprocess

SPLITS = ("val", "overlap")
# As deployed, but for the NMS, which comes after it at every threshold of the grid.
CANDIDATES: dict[HeadName, PostprocessConfig] = {
    "o2m": PostprocessConfig(per_level=1000),
    "o2o": PostprocessConfig(per_level=TOP_K, cap_at_cells=False),
}
DIGITS = 6  # decimals that are stored


@dataclass(frozen=True)
class _Image:
    """Candidates of one head in one image: boxes [n, 4] xyxy in input pixels, scores, labels."""

    image_id: int
    geometry: Geometry
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class _Found:
    """Candidates of one head in all images of a split."""

    checkpoint: Checkpoint
    head: HeadName
    dataset: DetectionDataset
    images: list[_Image]

    def results(self, nms: float | None) -> list[Result]:
        """COCO results of the model's output: at most 100 an image, after NMS if it has one."""
        categories = category_ids_of(self.checkpoint.class_names, self.dataset)
        height, width = self.checkpoint.input_size
        limit = np.array([width, height] * 2, np.float32)
        results: list[Result] = []
        for image in self.images:
            if nms is None:
                rows = np.argsort(-image.scores, kind="stable")[:TOP_K]
            else:
                rows = suppress(image.boxes, image.scores, image.labels, nms)[:TOP_K]
            boxes = image.geometry.to_source(np.clip(image.boxes[rows], 0, limit))
            own = [categories[label] for label in image.labels[rows].tolist()]
            results += coco_results(image.image_id, boxes, own, image.scores[rows])
        return results

    def analysis(self, results: list[Result]) -> Analysis:
        return analyse(self.dataset, results, make_spec(self.checkpoint, self.head))


def measure(checkpoint: Path, data: Path, splits: Sequence[str] = SPLITS) -> dict[str, Any]:
    """Measure every head of a checkpoint on every split; AP and F1 are 0–1.

    Both heads see one pass over the images. A head's figures are those of `nmsfree eval` for its
    deployed output: the best 100 of the o2o head, and of the o2m head after NMS at IoU 0.6. `nms`
    holds the AP by the IoU threshold of a class-aware NMS ("0.50" … "0.95"): of the o2m head's
    candidates, and on top of the o2o head's output.

    Returns:
        By split: images, objects, and by head the figures, ready for `json.dumps`.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: a split is missing, or has other classes than the checkpoint.
        InputError: an image cannot be read.
    """
    loaded = load_checkpoint(checkpoint)
    network = loaded.build()
    return {name: _measure(network, loaded, load_dataset(data, name)) for name in splits}


def _measure(network: Fcos, checkpoint: Checkpoint, dataset: DetectionDataset) -> dict[str, Any]:
    images = _candidates(network, checkpoint, dataset)
    scorer = CocoScorer(dataset)
    measured: dict[str, Any] = {"images": len(dataset)}
    for head, own in images.items():
        found = _Found(checkpoint, head, dataset, own)
        results = found.results(NMS_IOU if head == "o2m" else None)
        analysis = found.analysis(results)
        aps = _with_nms(found, scorer) if head == "o2m" else _on_top(found, results, scorer)
        nms = {grid_key(iou): round(ap, DIGITS) for iou, ap in zip(NMS_GRID, aps, strict=True)}
        measured["objects"] = analysis.objects
        measured[head] = _figures(analysis) | {"nms": nms}
    return measured


@torch.inference_mode()
def _candidates(
    network: Fcos, checkpoint: Checkpoint, dataset: DetectionDataset
) -> dict[HeadName, list[_Image]]:
    """Run the network once over all images; everything above the floor, by head."""
    images: dict[HeadName, list[_Image]] = {head: [] for head in checkpoint.model.heads}
    for start in range(0, len(dataset), CHUNK):
        samples = dataset.samples[start : start + CHUNK]
        inputs, geometries = _read(samples, checkpoint.input_size)
        predictions = network(normalize(torch.from_numpy(inputs)))
        for head, own in images.items():
            found = postprocess(predictions[head], CANDIDATES[head])
            own += [
                _Image(sample.image_id, geometry, *columns)
                for sample, geometry, columns in zip(samples, geometries, found, strict=True)
            ]
    return images


def _read(
    samples: Sequence[Sample], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], list[Geometry]]:
    """Model inputs uint8 [N, H, W, 3] BGR, and how each image lies in its own."""
    inputs = np.empty((len(samples), *size, 3), np.uint8)
    geometries = []
    for sample, row in zip(samples, inputs, strict=True):
        image = read_image(sample.path)
        check_size(sample, *image.shape[:2])
        geometries.append(letterbox(image, row))
    return inputs, geometries


def _with_nms(found: _Found, scorer: CocoScorer) -> list[float]:
    """AP of the o2m head at every threshold of the grid, by the NMS that is deployed."""
    return [scorer.ap(found.results(iou)) for iou in NMS_GRID]


def _on_top(found: _Found, results: list[Result], scorer: CocoScorer) -> list[float]:
    """AP after NMS on top of the output, at every threshold of the grid."""
    image_ids = [sample.image_id for sample in found.dataset.samples]
    category_ids = category_ids_of(found.checkpoint.class_names, found.dataset)
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    boxes = best_first(read_boxes(results, image_ids, labels))
    kept = (boxes.select(survivors(boxes, iou)) for iou in NMS_GRID)
    return [scorer.ap(to_results(rest, image_ids, category_ids)) for rest in kept]


def _figures(analysis: Analysis) -> dict[str, float]:
    figures = {
        "AP": analysis.metrics.ap,
        "AP50": analysis.metrics.ap50,
        "AP75": analysis.metrics.ap75,
        "F1": analysis.best.f1,
        "F1_with_nms": analysis.best_f1_with_nms,
        "threshold": analysis.best.threshold,
        "duplicates_per_image": analysis.duplicates_per_image,
        "wrong_duplicates_per_image": analysis.wrong_duplicates_per_image,
        "duplicates_per_image_at_floor": analysis.duplicates_at_floor,
    }
    return {name: round(value, DIGITS) for name, value in figures.items()}

"""What a trained network reaches: both heads, with NMS at many thresholds and without."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.evaluation.analysis import Analysis, analyse
from nmsfree.evaluation.boxes import best_first, read_boxes, to_results
from nmsfree.evaluation.evaluate import CHUNK, category_ids_of, check_size, coco_results
from nmsfree.evaluation.matching import NMS_IOU, survivors
from nmsfree.evaluation.scores import CocoScorer, Result
from nmsfree.images import read_image
from nmsfree.nms import suppress
from nmsfree.preprocess import Geometry, resize_into
from nmsfree_training.config import HeadName
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.norms import normalize
from nmsfree_training.study.results import NMS_GRID, SPLITS, grid_key
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint
from nmsfree_training.weights.predict import TOP_K, PostprocessConfig, make_spec, postprocess

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

    def results(
        self, categories: Sequence[int], size: tuple[int, int], nms: float | None
    ) -> list[Result]:
        """COCO results of the model's output: at most 100, after NMS if it has one."""
        if nms is None:
            rows = np.argsort(-self.scores, kind="stable")[:TOP_K]
        else:
            rows = suppress(self.boxes, self.scores, self.labels, nms)[:TOP_K]
        clipped = np.clip(self.boxes[rows], 0, np.array([*size[::-1]] * 2, np.float32))
        own = [categories[label] for label in self.labels[rows].tolist()]
        return coco_results(self.image_id, self.geometry.to_source(clipped), own, self.scores[rows])


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
    categories = category_ids_of(checkpoint.class_names, dataset)
    scorer = CocoScorer(dataset)
    measured: dict[str, Any] = {"images": len(dataset)}

    def results(images: list[_Image], nms: float | None) -> list[Result]:
        size = checkpoint.input_size
        return [row for image in images for row in image.results(categories, size, nms)]

    for head, images in candidates(network, checkpoint, dataset).items():
        output = results(images, NMS_IOU if head == "o2m" else None)
        analysis = analyse(dataset, output, make_spec(checkpoint, head))
        after_nms = (
            (results(images, iou) for iou in NMS_GRID)
            if head == "o2m"
            else _on_top(output, dataset, categories)
        )
        aps = (round(scorer.ap(rest), DIGITS) for rest in after_nms)
        nms = dict(zip(map(grid_key, NMS_GRID), aps, strict=True))
        measured["objects"] = analysis.objects
        measured[head] = _figures(analysis) | {"nms": nms}
    return measured


@torch.inference_mode()
def candidates(
    network: Fcos, checkpoint: Checkpoint, dataset: DetectionDataset
) -> dict[HeadName, list[_Image]]:
    """Run the network once over all images; everything above the floor, by head."""
    images: dict[HeadName, list[_Image]] = {head: [] for head in checkpoint.model.heads}
    for start in range(0, len(dataset), CHUNK):
        samples = dataset.samples[start : start + CHUNK]
        inputs = np.empty((len(samples), *checkpoint.input_size, 3), np.uint8)  # BGR
        geometries = []
        for sample, row in zip(samples, inputs, strict=True):
            image = read_image(sample.path)
            check_size(sample, *image.shape[:2])
            geometries.append(resize_into(image, row))
        predictions = network(normalize(torch.from_numpy(inputs)))
        for head, own in images.items():
            found = postprocess(predictions[head], CANDIDATES[head])
            own += [
                _Image(sample.image_id, geometry, *columns)
                for sample, geometry, columns in zip(samples, geometries, found, strict=True)
            ]
    return images


def _on_top(
    output: list[Result], dataset: DetectionDataset, categories: Sequence[int]
) -> Iterable[list[Result]]:
    """What NMS on top of the output leaves, at every threshold of the grid."""
    image_ids = [sample.image_id for sample in dataset.samples]
    labels = {category: label for label, category in enumerate(categories)}
    boxes = best_first(read_boxes(output, image_ids, labels))
    for iou in NMS_GRID:
        yield to_results(boxes.select(survivors(boxes, iou)), image_ids, categories)


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

"""Detections and objects of a whole dataset as columns, and the pairs of them that overlap."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.errors import DataError
from nmsfree.evaluation.scores import Result

PAIRS_AT_ONCE = 1_000_000  # pairs of boxes compared in one step: about 200 MB

Indices = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Detections or objects, one row each."""

    image: Indices  # int64 [n], number of the image
    label: Indices  # int64 [n], class id of the model
    xywh: Values  # float64 [n, 4], left, top, width, height in source pixels
    score: Values  # float64 [n], 0 … 1; 1 for objects
    crowd: NDArray[np.bool_]  # [n], regions of many objects; False for detections

    def __len__(self) -> int:
        return len(self.image)

    def select(self, keep: NDArray[Any]) -> "Boxes":
        """Return the rows chosen by a mask [n] or an index array."""
        return Boxes(*(column[keep] for column in vars(self).values()))

    def keys(self, by_class: bool) -> Indices:
        """Return int64 [n], equal for rows that can meet: of an image, or an image and class."""
        return (self.image << 32) + (self.label if by_class else 0)


def read_boxes(
    rows: Sequence[dict[str, Any]], image_ids: Sequence[int], labels: dict[int, int]
) -> Boxes:
    """Return COCO results, or annotations, of the wanted images in the order given.

    `labels` is the class id of every category id; DataError where a row names another.
    """
    number = {image_id: i for i, image_id in enumerate(image_ids)}
    wanted = [row for row in rows if row["image_id"] in number]
    unknown = {row["category_id"] for row in wanted} - labels.keys()
    if unknown:
        raise DataError(
            f"category {min(unknown)} is none of the model's {len(labels)} classes: "
            "these are the results of another dataset"
        )
    return Boxes(
        np.array([number[row["image_id"]] for row in wanted], np.int64),
        np.array([labels[row["category_id"]] for row in wanted], np.int64),
        np.array([row["bbox"] for row in wanted], np.float64).reshape(-1, 4),
        np.array([row.get("score", 1.0) for row in wanted], np.float64),
        np.array([row.get("iscrowd", 0) for row in wanted], np.bool_),
    )


def objects_of(dataset: DetectionDataset, labels: Mapping[int, int]) -> Boxes:
    """Return the annotated objects of a dataset, image by image; `labels` by category id."""
    samples = dataset.samples
    class_ids = np.array([labels[i] for i in dataset.category_ids], np.int64)
    own = class_ids[np.concatenate([sample.labels for sample in samples])]
    return Boxes(
        np.repeat(np.arange(len(samples)), [len(sample.labels) for sample in samples]),
        own,
        np.concatenate([sample.xywh for sample in samples]),
        np.ones(len(own)),
        np.concatenate([sample.iscrowd for sample in samples]),
    )


def to_results(found: Boxes, image_ids: Sequence[int], category_ids: Sequence[int]) -> list[Result]:
    """Return detections as COCO results: the way back of `read_boxes`."""
    columns = (c.tolist() for c in (found.image, found.label, found.xywh, found.score))
    return [
        {"image_id": image_ids[i], "category_id": category_ids[label], "bbox": box, "score": score}
        for i, label, box, score in zip(*columns, strict=True)
    ]


def best_first(found: Boxes) -> Boxes:
    """Sort detections by image, then by score; equal scores in an order of their own."""
    x, y, w, h = found.xywh.T
    return found.select(np.lexsort((h, w, y, x, found.label, -found.score, found.image)))


def iou_of(a: Values, b: Values, crowd: NDArray[np.bool_]) -> Values:
    """IoU of the rows of two arrays [n, 4] xywh; for a crowd in `b` intersection / area of a."""
    w = np.minimum(a[:, 0] + a[:, 2], b[:, 0] + b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    h = np.minimum(a[:, 1] + a[:, 3], b[:, 1] + b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    shared = np.maximum(w, 0) * np.maximum(h, 0)
    area = a[:, 2] * a[:, 3]
    union = np.where(crowd, area, area + b[:, 2] * b[:, 3] - shared)
    ratio: Values = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def pairs_between(
    found: Boxes, truth: Boxes, iou: float, by_class: bool
) -> tuple[Indices, Indices]:
    """Return the pairs (row of found, row of truth) with at least this IoU.

    They are sorted by the detection, then by IoU, largest first; of equal ones the later object
    comes first, as in the official evaluation.
    """
    order = np.argsort(truth.keys(by_class), kind="stable")
    keys, wanted = truth.keys(by_class)[order], found.keys(by_class)
    first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
    near = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for i, position in _ranges(first, last):
        j = order[position]
        values = iou_of(found.xywh[i], truth.xywh[j], truth.crowd[j])
        keep = values >= iou
        near.append((i[keep], j[keep], values[keep]))
    i, j, values = (np.concatenate(parts) for parts in zip(*near, strict=True))
    best = np.lexsort((-j, -values, i))
    return i[best], j[best]


def pairs_within(found: Boxes, iou: float) -> tuple[Indices, Indices]:
    """Return the pairs (better row, worse row) of one image and class with an IoU above this.

    `found` comes from `best_first`; the pairs are sorted by the better row.
    """
    keys = found.keys(by_class=True)
    order = np.argsort(keys, kind="stable")  # within a key best score first
    last = np.searchsorted(keys[order], keys[order], "right")
    near = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for a, b in _ranges(np.arange(1, len(found) + 1), last):
        i, j = order[a], order[b]
        keep = iou_of(found.xywh[i], found.xywh[j], found.crowd[j]) > iou
        near.append((i[keep], j[keep]))
    i, j = (np.concatenate(parts) for parts in zip(*near, strict=True))
    best = np.argsort(i, kind="stable")
    return i[best], j[best]


def _ranges(first: Indices, last: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Yield the pairs (row, position) for the positions first[row] … last[row] − 1, in parts."""
    counts = last - first
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, "right")))
        part = counts[start:stop]
        rows = np.repeat(np.arange(start, stop), part)
        within = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
        yield rows, first[rows] + within
        start = stop

"""Pictures to measure on: digits scenes, and 1080p pictures made of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.datasets.formats.coco import DetectionDataset, load_coco
from nmsfree.images import read_image
from nmsfree_benchmarks.machine.measure import Image

SPLIT = "val"
VAL_IMAGES = 300
SCENE = 270  # px a digits scene is enlarged to, so that 4 × 8 of them cover 1080 × 1920
ROWS, COLUMNS = 4, 8


def digits_val(
    data: Path, work: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> DetectionDataset:
    """Return the digits `val` split: that of `data` as it is, else one written below `work`.

    `data` is never written to, so an existing set of another size stays whole.
    """
    if (data / "annotations" / f"instances_{SPLIT}.json").is_file():
        return load_coco(data, SPLIT)
    made = work / "digits"
    write_digits(
        made,
        train=0,
        val=VAL_IMAGES,
        crowd=0,
        progress=lambda _, done, total: progress(done, total),
    )
    return load_coco(made, SPLIT)


def first(dataset: DetectionDataset, count: int | None) -> DetectionDataset:
    """Return the dataset shortened to its first images; None keeps all."""
    return dataclasses.replace(dataset, samples=dataset.samples[:count])


def pictures(dataset: DetectionDataset, count: int) -> list[Image]:
    """Read the first images of a dataset, BGR uint8."""
    return [read_image(sample.path) for sample in dataset.samples[:count]]


def full_hd(scenes: list[Image], count: int) -> list[Image]:
    """Make BGR uint8 [1080, 1920, 3] pictures, each a mosaic of 32 scenes in another order."""
    order = np.random.default_rng(0)
    return [_mosaic([scenes[i] for i in _draw(order, len(scenes))]) for _ in range(count)]


def _draw(order: np.random.Generator, available: int) -> list[int]:
    return [int(i) for i in order.choice(available, ROWS * COLUMNS, replace=True)]


def _mosaic(scenes: list[Image]) -> Image:
    tiles = [cv2.resize(s, (SCENE, SCENE), interpolation=cv2.INTER_CUBIC) for s in scenes]
    rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
    return np.ascontiguousarray(np.vstack(rows)[:1080, :1920], dtype=np.uint8)

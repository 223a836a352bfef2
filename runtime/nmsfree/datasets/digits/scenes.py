"""Digits scenes: a COCO-format detection set that needs no download.

Scenes are composed from real handwritten digits of the UCI Optical Recognition of Handwritten
Digits set by E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, CC BY 4.0,
DOI 10.24432/C50P49). The `overlap` split is full of what non-maximum suppression cannot win: two
digits of one class whose boxes overlap with an IoU of 0.5 to 0.75.

`train` is trained on; on `val` weights and thresholds are chosen, and recipes on `val` and
`overlap`. On `test` and `test-overlap`, which are like those two in other scenes, nothing is.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.digits.draw import paint
from nmsfree.datasets.digits.layout import instances, lay_out
from nmsfree.datasets.made import Labelled, MadeSet, Progress
from nmsfree.drawing import Mark, Tile, color_of, make_sheet
from nmsfree.errors import DataError, InputError
from nmsfree.images import write_picture

# Name → its number in the random seed.
SPLITS = {"train": 0, "val": 1, "overlap": 2, "test": 3, "test-overlap": 4}
CLASS_NAMES = tuple(str(digit) for digit in range(10))
PAIR_SHARE = 0.3  # of the train and val images hold one pair of the same class
DIGITS = MadeSet(
    "digits",
    recipe=1,
    seed=0,
    class_names=CLASS_NAMES,
    supercategory="digit",
    contributor="handwritten digits: E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, "
    "https://doi.org/10.24432/C50P49",
    licence={"name": "CC BY 4.0", "url": "https://creativecommons.org/licenses/by/4.0/"},
)


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture with its objects."""

    image: NDArray[np.uint8]  # [256, 256, 3], BGR
    boxes: NDArray[np.float32]  # [n, 4], xyxy, tight around the ink as if nothing were hidden
    labels: NDArray[np.int64]  # [n], the digit, 0 … 9


def make_scene(split: str, index: int, seed: int = 0) -> Scene:
    """Make a scene, the `index`-th of its split; it depends on nothing but the arguments.

    `train` shares no handwritten digit with the other splits, which share theirs.
    """
    if split not in SPLITS:
        raise DataError(f"no digits split {split!r}: choose one of {', '.join(SPLITS)}")
    rng = np.random.default_rng((seed, SPLITS[split], index))
    if split.endswith("overlap"):
        pairs = int(rng.integers(2, 4))
        singles = int(rng.integers(0, 11 - 2 * pairs))
    else:
        pairs = int(rng.random() < PAIR_SHARE)
        singles = int(rng.integers(3, 11)) - 2 * pairs
    groups = lay_out(rng, instances(held_out=split != "train"), pairs, singles)
    placed = [digit for group in groups for digit in group]
    boxes = np.array([digit.box for digit in placed], dtype=np.float32)
    labels = np.array([digit.glyph.label for digit in placed], dtype=np.int64)
    return Scene(paint(rng, groups), boxes, labels)


def write_digits(
    out: Path, *, seed: int = 0, progress: Progress | None = None, **counts: int
) -> list[str]:
    """Write a digits set: DIR/SPLIT/NNNNN.png and DIR/annotations/instances_SPLIT.json.

    A split that is complete is left as it is; one that is missing, interrupted or of another
    length is (re)written. Nothing of a split is ever half written under its final name.

    Args:
        progress: called as (split, done, total) after every image of a split being written.
        counts: number of images of each of `SPLITS`, of "test-overlap" as test_overlap; a split
            without images is left out.

    Returns:
        The splits that had to be written; none when the set was complete.

    Raises:
        DataError: the folder holds other data, or a digits set of another seed.
    """
    splits = {name.replace("_", "-"): count for name, count in counts.items()}

    def make(split: str, index: int) -> Labelled:
        scene = make_scene(split, index, seed)
        boxes, labels = scene.boxes.tolist(), scene.labels.tolist()
        return Labelled(scene.image, boxes, labels, [0] * len(labels))

    return replace(DIGITS, seed=seed).write(out, splits, make, progress)


def write_preview(path: Path, seed: int = 0) -> None:
    """Write the first four scenes of every split, a row each; the suffix chooses the format."""
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise InputError(f"{path}: not a picture format that can be written, expected .png or .jpg")
    tiles = [_tile(split, index, seed) for split in SPLITS for index in range(4)]
    write_picture(path, make_sheet(tiles, 4))


def _tile(split: str, index: int, seed: int) -> Tile:
    scene = make_scene(split, index, seed)
    marks = [
        Mark((x1, y1, x2, y2), CLASS_NAMES[label], color_of(label))
        for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True)
    ]
    return Tile(scene.image, marks, f"{split} {index}", f"{len(marks)} objects")

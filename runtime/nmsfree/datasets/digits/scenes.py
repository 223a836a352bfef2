"""Digits scenes: a COCO-format detection set that needs no download.

Scenes are composed from real handwritten digits of the UCI Optical Recognition of Handwritten
Digits set by E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, CC BY 4.0,
DOI 10.24432/C50P49). The `overlap` split is full of what non-maximum suppression cannot win: two
digits of one class whose boxes overlap with an IoU of 0.5 to 0.75.

`train` is trained on; on `val` weights and thresholds are chosen, and recipes on `val` and
`overlap`. On `test` and `test-overlap`, which are like those two in other scenes, nothing is.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.digits.draw import paint
from nmsfree.datasets.digits.layout import SIDE, instances, lay_out
from nmsfree.datasets.formats.coco import instances_of
from nmsfree.decode import decode_json, read_bytes
from nmsfree.drawing import Mark, Tile, color_of, make_sheet
from nmsfree.errors import DataError, InputError
from nmsfree.files import is_part, write_atomic
from nmsfree.images import write_picture
from nmsfree.text import shown

logger = logging.getLogger(__name__)

# Name → its number in the random seed.
SPLITS = {"train": 0, "val": 1, "overlap": 2, "test": 3, "test-overlap": 4}
CLASS_NAMES = tuple(str(digit) for digit in range(10))
RECIPE = 1  # raised whenever the same seed would give other scenes
PAIR_SHARE = 0.3  # of the train and val images hold one pair of the same class
RECORD = "digits.json"

Progress = Callable[[str, int, int], None]  # split, images done, images in the split


@dataclass(frozen=True)
class _Record:
    """What made a set, and the lengths of its finished splits."""

    recipe: int
    seed: int
    splits: dict[str, int]


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
    finished = _read_record(out, seed)
    written = []
    for split, count in ((name.replace("_", "-"), count) for name, count in counts.items()):
        if count == 0 or (finished.get(split) == count and _is_complete(out, split, count)):
            continue
        finished.pop(split, None)
        _write_record(out, seed, finished)
        _write_split(out, split, count, seed, progress)
        finished[split] = count
        _write_record(out, seed, finished)
        written.append(split)
        logger.info("wrote %d %s scenes to %s", count, split, out)
    return written


def _read_record(out: Path, seed: int) -> dict[str, int]:
    """Return the finished splits of a set and their lengths, empty for a new folder."""
    path = out / RECORD
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: give an empty or new folder for the digits")
    if not path.exists():
        if out.exists() and not all(map(is_part, out.iterdir())):
            raise DataError(f"{out} holds other data: give an empty or new folder for the digits")
        return {}
    data = read_bytes(path, error=DataError)
    found = decode_json(data, _Record, path, DataError, f"delete {shown(out)}")
    if (found.recipe, found.seed) != (RECIPE, seed):
        raise DataError(
            f"{out} holds digits of recipe {found.recipe} and seed {found.seed}, asked for recipe "
            f"{RECIPE} and seed {seed}: delete it or give another folder"
        )
    return dict(found.splits)


def _write_record(out: Path, seed: int, splits: dict[str, int]) -> None:
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    record = {"recipe": RECIPE, "seed": seed, "splits": ordered}
    write_atomic(out / RECORD, json.dumps(record).encode())


def _annotation_path(out: Path, split: str) -> Path:
    return out / "annotations" / f"instances_{split}.json"


def _is_complete(out: Path, split: str, count: int) -> bool:
    """Tell whether the annotations and every image are there."""
    names = {path.name for path in (out / split).glob("*.png")}
    whole = all(_file_name(index) in names for index in range(count))
    return whole and _annotation_path(out, split).is_file()


def _file_name(index: int) -> str:
    return f"{index:05d}.png"


def _write_split(out: Path, split: str, count: int, seed: int, progress: Progress | None) -> None:
    objects: list[tuple[int, list[float], int, int]] = []
    for index in range(count):
        scene = make_scene(split, index, seed)
        write_picture(out / split / _file_name(index), scene.image)
        rows = zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True)
        objects += [(index + 1, box, label, 0) for box, label in rows]
        if progress is not None:
            progress(split, index + 1, count)
    info = {
        "description": f"nmsfree digits, {split}, recipe {RECIPE}, seed {seed}",
        "contributor": "handwritten digits: E. Alpaydin and C. Kaynak, "
        "UCI Machine Learning Repository, https://doi.org/10.24432/C50P49",
    }
    licence = {"name": "CC BY 4.0", "url": "https://creativecommons.org/licenses/by/4.0/"}
    images = [(_file_name(index), SIDE, SIDE) for index in range(count)]
    content = instances_of(info, licence, CLASS_NAMES, "digit", images, objects)
    write_atomic(_annotation_path(out, split), json.dumps(content).encode())


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

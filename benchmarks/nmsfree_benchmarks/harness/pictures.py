"""Pictures to measure on: digits scenes, larger pictures made of them, and crowds.

A crowd is a square of tiles with a chosen number of objects, from empty to crowded, each tile laid
out by itself as a digits scene is. Its ground is out of focus: the sharp texture and strokes of the
digits set would be hundreds of weak candidates in a scene without a digit, and this is about what
objects cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.digits.draw import draw_group, paint
from nmsfree.datasets.digits.layout import SIDE, instances, lay_out
from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import InputError
from nmsfree.files import write_atomic
from nmsfree.images import read_image
from nmsfree_benchmarks.harness.timer import Image, Progress

FORMATS = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 90], ".png": [cv2.IMWRITE_PNG_COMPRESSION, 3]}
VAL_IMAGES, CALIBRATION_IMAGES = 300, 128
SCENE = 270  # px a digits scene is enlarged to, so that 4 × 8 of them cover 1080 × 1920
ROWS, COLUMNS = 4, 8
TILES = 4  # to a side of a crowd: 1024 × 1024 pixels, 21,504 cells of the detectors here
MOST_IN_TILE = 32  # digits of 14 px and more that are laid out in a few tries
OUT_OF_FOCUS = 8.0  # px, standard deviation of the blur of the ground
_STREAM = 71  # first number of the random seed, so that no split of the digits set is repeated


def digits(data: Path, work: Path, split: str, progress: Progress) -> Path:
    """A folder with a split of the digits set: `data` as it is, else one written below `work`.

    `data` is never written to, so an existing set of another size stays whole.
    """
    if (data / "annotations" / f"instances_{split}.json").is_file():
        return data
    made = work / "digits"
    counts = {"train": 0, "val": 0} | {split: VAL_IMAGES if split == "val" else CALIBRATION_IMAGES}
    write_digits(made, **counts, overlap=0, progress=lambda _, done, total: progress(done, total))
    return made


def read_first(dataset: DetectionDataset, count: int) -> list[Image]:
    """Read the first images of a dataset, BGR uint8."""
    return [read_image(sample.path) for sample in dataset.samples[:count]]


def full_hd(scenes: list[Image], count: int) -> list[Image]:
    """Make BGR uint8 [1080, 1920, 3] pictures, each a mosaic of 32 scenes in another order."""
    order = np.random.default_rng(0)
    size = (SCENE, SCENE)
    made = []
    for _ in range(count):
        drawn = [scenes[i] for i in order.choice(len(scenes), ROWS * COLUMNS, replace=True)]
        tiles = [cv2.resize(scene, size, interpolation=cv2.INTER_CUBIC) for scene in drawn]
        rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
        made.append(np.ascontiguousarray(np.vstack(rows)[:1080, :1920], dtype=np.uint8))
    return made


class Crowd(NamedTuple):
    """One picture with its objects; boxes are tight around the ink as if nothing were hidden."""

    image: Image  # [256 · tiles, 256 · tiles, 3]
    boxes: NDArray[np.float32]  # [objects, 4], xyxy in pixels
    labels: NDArray[np.int64]  # [objects], the digit, 0 … 9


def make_crowd(objects: int, index: int = 0, tiles: int = TILES, seed: int = 0) -> Crowd:
    """Make one scene with so many digits; it depends on nothing but the arguments.

    `index` is its number among those with as many objects; to a side are so many `tiles` of 256
    pixels, which hold equally many, give or take one. InputError: there is no room for so many.
    """
    most = MOST_IN_TILE * tiles**2
    if not 0 <= objects <= most:
        raise InputError(
            f"objects is {objects}, expected 0 … {most}: {tiles} × {tiles} tiles have no room for "
            "more"
        )
    rng = np.random.default_rng((seed, _STREAM, tiles, objects, index))
    # Blur across the tiles leaves no seams between them.
    rows = [np.hstack([paint(rng, []) for _ in range(tiles)]) for _ in range(tiles)]
    image = np.asarray(cv2.GaussianBlur(np.vstack(rows), (0, 0), OUT_OF_FOCUS), dtype=np.uint8)
    counts = np.full(tiles**2, objects // tiles**2)
    counts[rng.permutation(tiles**2)[: objects % tiles**2]] += 1  # which get one more is drawn
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for tile, count in enumerate(counts.tolist()):
        top, left = (SIDE * n for n in divmod(tile, tiles))
        view = image[top : top + SIDE, left : left + SIDE]
        for group in lay_out(rng, instances(held_out=True), pairs=0, singles=count):
            draw_group(rng, view, group)
            for digit in group:
                x1, y1, x2, y2 = digit.box
                boxes.append((x1 + left, y1 + top, x2 + left, y2 + top))
                labels.append(digit.glyph.label)
    return Crowd(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene in one size: BGR uint8 [h, w, 3], and its files by suffix."""

    image: Image
    files: dict[str, Path]


def label(size: tuple[int, int]) -> str:
    """As people say it, width first: "1920×1080"."""
    return f"{size[1]}×{size[0]}"


def make_scenes(scenes: Sequence[Image], size: tuple[int, int], folder: Path) -> list[Scene]:
    """Show each scene in another size, with as many copies as cover it, and write its files.

    Objects keep their size in pixels up to twice, so that a larger picture has more of them.
    """
    height, width = size
    made = []
    for index, scene in enumerate(scenes):
        scale = max(1, min(2, round(height / (2 * scene.shape[0]))))
        tile = np.repeat(np.repeat(scene, scale, axis=0), scale, axis=1)
        down, right = -(-height // tile.shape[0]), -(-width // tile.shape[1])
        image = np.ascontiguousarray(np.tile(tile, (down, right, 1))[:height, :width])
        files = {suffix: folder / f"{label(size)}-{index}{suffix}" for suffix in FORMATS}
        for suffix, path in files.items():
            encoded = cv2.imencode(suffix, image, FORMATS[suffix])[1]
            write_atomic(path, encoded.tobytes(), sync=False)
        made.append(Scene(image, files))
    return made

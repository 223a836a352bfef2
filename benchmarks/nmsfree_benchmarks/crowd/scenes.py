"""Scenes with a chosen number of objects, from empty to crowded, drawn with real digits.

A scene is a square of tiles, each laid out by itself as a digits scene is. The ground is out of
focus: the sharp texture and strokes of the digits set would be hundreds of weak candidates in a
scene without a digit, and this is about what objects cost.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.digits.draw import draw_group, paint
from nmsfree.datasets.digits.layout import SIDE, instances, lay_out
from nmsfree.errors import InputError
from nmsfree_benchmarks.machine.measure import Image

TILES = 4  # to a side: 1024 × 1024 pixels, 21,504 cells of the detectors here
MOST_IN_TILE = 32  # digits of 14 px and more that are laid out in a few tries
OUT_OF_FOCUS = 8.0  # px, standard deviation of the blur of the ground
_STREAM = 71  # first number of the random seed, so that no split of the digits set is repeated


@dataclass(frozen=True, eq=False)
class Crowd:
    """One picture with its objects.

    Attributes:
        image: uint8 [256 · tiles, 256 · tiles, 3], BGR.
        boxes: float32 [objects, 4], xyxy in pixels, tight around the ink as if nothing were hidden.
        labels: int64 [objects], the digit, 0 … 9.
    """

    image: Image
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def make_crowd(objects: int, index: int = 0, tiles: int = TILES, seed: int = 0) -> Crowd:
    """Make one scene; it depends on nothing but the arguments.

    Args:
        objects: digits in it; the tiles hold equally many, give or take one.
        index: number of the scene among those with as many objects.
        tiles: to a side of the picture, 256 pixels each.
        seed: another seed gives another set.

    Raises:
        InputError: there is no room for so many.
    """
    most = MOST_IN_TILE * tiles**2
    if not 0 <= objects <= most:
        raise InputError(
            f"objects is {objects}, expected 0 … {most}: {tiles} × {tiles} tiles have no room for "
            "more"
        )
    rng = np.random.default_rng((seed, _STREAM, tiles, objects, index))
    image = _ground(rng, tiles)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for tile, count in enumerate(_counts(rng, objects, tiles**2)):
        top, left = (SIDE * n for n in divmod(tile, tiles))
        view = image[top : top + SIDE, left : left + SIDE]
        for group in lay_out(rng, instances(held_out=True), pairs=0, singles=count):
            draw_group(rng, view, group)
            for digit in group:
                x1, y1, x2, y2 = digit.box
                boxes.append((x1 + left, y1 + top, x2 + left, y2 + top))
                labels.append(digit.glyph.label)
    return Crowd(
        image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64)
    )


def _ground(rng: np.random.Generator, tiles: int) -> Image:
    """Blur across the tiles, which leaves no seams between them."""
    rows = [np.hstack([paint(rng, []) for _ in range(tiles)]) for _ in range(tiles)]
    blurred = cv2.GaussianBlur(np.vstack(rows), (0, 0), OUT_OF_FOCUS)
    return np.asarray(blurred, dtype=np.uint8)


def _counts(rng: np.random.Generator, objects: int, tiles: int) -> list[int]:
    """Share objects out among tiles; which of them get one more is drawn."""
    counts = np.full(tiles, objects // tiles)
    counts[rng.permutation(tiles)[: objects % tiles]] += 1
    return [int(count) for count in counts]

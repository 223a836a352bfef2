"""Examples made of several images: four around a point, or two blended."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.preprocess import PAD_BGR, fit
from nmsfree_training.augment import Example, cut, resize

CENTRE = (0.25, 0.75)  # where the four images may meet, as a share of the canvas
SMALLEST = 0.5  # of the size at which an image fits the canvas
SHARE = (0.4, 0.6)  # of the first image in a blend: both sets of boxes count fully, so both show


def mosaic(tiles: Sequence[Example], size: tuple[int, int], rng: np.random.Generator) -> Example:
    """Put four images around a random point of a canvas (YOLOv4, arXiv:2004.10934).

    Each is resized to fit the whole canvas, times a random factor of at most 1 with which it still
    covers its quarter where that is possible without going below `SMALLEST`; then it is cut to the
    quarter at a random place. What stays empty has the mean colour.

    Args:
        tiles: upper left, upper right, lower left, lower right.
        size: (height, width) of the canvas in pixels.
    """
    height, width = size
    y = min(max(1, round(height * rng.uniform(*CENTRE))), height - 1)
    x = min(max(1, round(width * rng.uniform(*CENTRE))), width - 1)
    canvas = _blank(height, width)
    placed = []
    for number, tile in enumerate(tiles):
        lower, right = divmod(number, 2)
        quarter = (height - y if lower else y), (width - x if right else x)
        part = _window(_shrink(tile, size, quarter, rng), quarter, rng)
        h, w = part.image.shape[:2]
        top, left = (y if lower else y - h), (x if right else x - w)
        canvas[top : top + h, left : left + w] = part.image
        placed.append(part._replace(boxes=part.boxes + np.array([left, top] * 2, np.float32)))
    return _join(canvas, placed)


def _shrink(
    tile: Example, size: tuple[int, int], quarter: tuple[int, int], rng: np.random.Generator
) -> Example:
    """Resize to fit `size`, times a random factor that still covers the quarter if it can."""
    height, width = fit(tile.image.shape[0], tile.image.shape[1], *size)
    covering = max(quarter[0] / height, quarter[1] / width)
    factor = rng.uniform(min(max(SMALLEST, covering), 1.0), 1.0)
    return resize(tile, max(1, round(height * factor)), max(1, round(width * factor)))


def mixup(first: Example, second: Example, rng: np.random.Generator) -> Example:
    """Blend a second image into the first, keeping both sets of boxes (arXiv:1710.09412).

    The frame is the first image's: the second is cut to it at a random place where it is larger,
    and lies in the upper left where it is smaller; the first stays as it is around it.
    """
    share = rng.uniform(*SHARE)
    height, width = first.image.shape[:2]
    second = _window(second, (height, width), rng)
    h, w = second.image.shape[:2]
    image = first.image.copy()
    image[:h, :w] = cv2.addWeighted(image[:h, :w], share, second.image, 1 - share, 0)
    return _join(image, [first, second])


def _window(example: Example, size: tuple[int, int], rng: np.random.Generator) -> Example:
    """Cut to at most (height, width), at a random place."""
    height, width = example.image.shape[:2]
    top = int(rng.integers(0, max(0, height - size[0]) + 1))
    left = int(rng.integers(0, max(0, width - size[1]) + 1))
    return cut(example, top, left, (min(size[0], height), min(size[1], width)))


def _blank(height: int, width: int) -> NDArray[np.uint8]:
    """A canvas of the mean colour; grown by OpenCV, several times faster than broadcasting."""
    pixel = np.array([[PAD_BGR]], np.uint8)
    grown = cv2.copyMakeBorder(pixel, 0, height - 1, 0, width - 1, cv2.BORDER_REPLICATE)
    return np.asarray(grown, np.uint8)


def _join(image: NDArray[np.uint8], parts: Sequence[Example]) -> Example:
    return Example(
        image,
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        tuple(name for part in parts for name in part.names),
        tuple(failure for part in parts for failure in part.failed),
    )

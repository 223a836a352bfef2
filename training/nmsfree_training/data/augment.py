"""Image and boxes → what the network sees in training. NumPy and OpenCV only.

Images are uint8 BGR [h, w, 3]; boxes float32 [n, 4], xyxy in pixels of the image.

Every function that draws takes its draws from the generator it is given, in a fixed order, and
draws nothing for what a recipe leaves off: an example stays the same whatever is added here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.preprocess import PAD_BGR, fit
from nmsfree_training.config import TrainConfig

MIN_VISIBLE = 0.3  # share of a box's area that a crop must keep, or the object is dropped
OFF = (1.0, 1.0)  # of `TrainConfig.scale`


class Example(NamedTuple):
    """One image with its objects."""

    image: NDArray[np.uint8]  # uint8 [h, w, 3], BGR; a view of a larger one where it was cut
    boxes: NDArray[np.float32]  # float32 [n, 4], xyxy in pixels of the image
    labels: NDArray[np.int64]  # int64 [n]
    names: tuple[str, ...] = ()  # files it was made of
    # (file, reason) of images that could not be used and were replaced.
    failed: tuple[tuple[str, str], ...] = ()


def place(
    example: Example, config: TrainConfig, input_size: tuple[int, int], rng: np.random.Generator
) -> Example:
    """Resize and crop: what decides the size of the example.

    An image that `scale` enlarges past the model's input (with `short_sides`: past `long_side`) is
    cut to it at a random place, so that no draw can make a batch much larger than the others.
    """
    height, width = example.image.shape[:2]
    if config.short_sides:
        short = int(rng.choice(config.short_sides))
        size = short_side_size(height, width, short, config.long_side)
        limit = (config.long_side, config.long_side)
    else:
        size, limit = fit(height, width, *input_size), input_size
    if config.scale != OFF:
        factor = rng.uniform(*config.scale)
        size = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    example = resize(example, *size)
    if config.scale != OFF and (size[0] > limit[0] or size[1] > limit[1]):
        example = random_crop(example, (min(size[0], limit[0]), min(size[1], limit[1])), rng)
    if config.crop is not None:
        window = round(input_size[0] * config.crop), round(input_size[1] * config.crop)
        example = random_crop(example, window, rng)
    return example


def finish(example: Example, config: TrainConfig, rng: np.random.Generator) -> Example:
    """Flip and jitter: after the crop, so that no pixel is worked on in vain."""
    if rng.random() < config.flip:
        example = flip(example)
    if config.color_jitter > 0:
        example = example._replace(image=jitter(example.image, config.color_jitter, rng))
    return example


def resized_size(height: int, width: int, short: int, limit: int) -> tuple[int, int]:
    """Return (height, width) with the short side at `short`, aspect kept: the published rule.

    Where the long side would pass `limit`, the short side becomes round(limit · low / high), and
    the long one may pass `limit` by half an aspect ratio. Rounding is Python's (half to even)
    there, and down for the long side.
    """
    low, high = sorted((height, width))
    if high / low * short > limit:
        short = max(1, round(limit * low / high))
    long = int(short * high / low)
    return (short, long) if height <= width else (long, short)


def short_side_size(height: int, width: int, short: int, limit: int) -> tuple[int, int]:
    """Return `resized_size`, in extreme images cut to `limit` and an eighth of it.

    Training gives up their aspect there, so that no image makes a batch much larger than others.
    """
    most = limit + limit // 8
    height, width = resized_size(height, width, short, limit)
    return min(height, most), min(width, most)


def resize(example: Example, height: int, width: int) -> Example:
    """Resize to (height, width), antialiased when shrinking."""
    old_height, old_width = example.image.shape[:2]
    if (old_height, old_width) == (height, width):
        return example
    method = cv2.INTER_AREA if height < old_height else cv2.INTER_LINEAR
    image = cv2.resize(example.image, (width, height), interpolation=method)
    scale = np.array([width / old_width, height / old_height] * 2, dtype=np.float32)
    return example._replace(image=np.asarray(image, np.uint8), boxes=example.boxes * scale)


def random_crop(example: Example, size: tuple[int, int], rng: np.random.Generator) -> Example:
    """Cut out a window of (height, width); smaller images are padded with the mean colour."""
    height, width = example.image.shape[:2]
    top = int(rng.integers(0, max(0, height - size[0]) + 1))
    left = int(rng.integers(0, max(0, width - size[1]) + 1))
    window = cut(example, top, left, size)
    missing = size[0] - window.image.shape[0], size[1] - window.image.shape[1]
    if missing == (0, 0):
        return window
    padded = cv2.copyMakeBorder(
        window.image, 0, missing[0], 0, missing[1], cv2.BORDER_CONSTANT, value=PAD_BGR
    )
    return window._replace(image=np.asarray(padded, np.uint8))


def cut(example: Example, top: int, left: int, size: tuple[int, int]) -> Example:
    """Keep what lies inside a window of (height, width), objects of which enough is left too.

    The image comes out smaller than the window where it ends before; boxes are clipped to the
    window.
    """
    shifted = example.boxes - np.array([left, top] * 2, np.float32)
    clipped = np.clip(shifted, 0, np.array([size[1], size[0]] * 2, np.float32))
    keep = _areas(clipped) >= MIN_VISIBLE * np.maximum(_areas(shifted), 1e-6)
    return example._replace(
        image=example.image[top : top + size[0], left : left + size[1]],
        boxes=clipped[keep],
        labels=example.labels[keep],
    )


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    size = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(size[:, 0] * size[:, 1], np.float32)


def flip(example: Example) -> Example:
    """Mirror left and right."""
    width = example.image.shape[1]
    boxes = example.boxes.copy()
    boxes[:, [0, 2]] = width - example.boxes[:, [2, 0]]
    return example._replace(image=np.asarray(cv2.flip(example.image, 1), np.uint8), boxes=boxes)


def jitter(
    image: NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Random gain per channel, contrast, saturation and brightness, each within ±strength."""
    contrast, saturation = 1 + rng.uniform(-strength, strength, 2)
    gain = 1 + rng.uniform(-strength, strength, 3) / 2
    brightness = 255 * rng.uniform(-strength, strength) / 2
    # Saturation mixes every channel with the mean of the three; everything is one 3×4 matrix.
    mix = saturation * np.eye(3) + (1 - saturation) / 3
    matrix = contrast * gain[:, None] * mix
    offset = 128 - matrix @ np.full(3, 128.0) + brightness
    jittered = cv2.transform(image, np.hstack([matrix, offset[:, None]]))
    return np.asarray(jittered, np.uint8)


CENTRE = (0.25, 0.75)  # where the four images may meet, as a share of the canvas
SMALLEST = 0.5  # of the size at which an image fits the canvas
SHARE = (0.4, 0.6)  # of the first image in a blend: both sets of boxes count fully, so both show


def mosaic(tiles: Sequence[Example], size: tuple[int, int], rng: np.random.Generator) -> Example:
    """Put four images around a random point of a canvas (YOLOv4, arXiv:2004.10934).

    Each is resized to fit the whole canvas, times a random factor of at most 1 with which it still
    covers its quarter where that is possible without going below `SMALLEST`; then it is cut to the
    quarter at a random place. What stays empty has the mean colour. `size` is (height, width); the
    tiles are upper left, upper right, lower left, lower right.
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

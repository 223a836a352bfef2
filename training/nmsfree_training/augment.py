"""Image and boxes → what the network sees in training. NumPy and OpenCV only.

Images are uint8 BGR [h, w, 3]; boxes float32 [n, 4], xyxy in pixels of the image.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.preprocess import PAD_BGR, fit
from nmsfree_training.config import TrainConfig

MIN_VISIBLE = 0.3  # share of a box's area that a crop must keep, or the object is dropped


class Example(NamedTuple):
    """One image with its objects: boxes float32 [n, 4] xyxy pixels, labels int64 [n]."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def augment(
    example: Example, config: TrainConfig, input_size: tuple[int, int], rng: np.random.Generator
) -> Example:
    """Resize, crop, flip and jitter as the recipe says."""
    example = _resize(example, config, input_size, rng)
    if config.crop is not None:
        size = round(input_size[0] * config.crop), round(input_size[1] * config.crop)
        example = random_crop(example, size, rng)
    if rng.random() < config.flip:
        example = flip(example)
    if config.color_jitter > 0:
        example = example._replace(image=jitter(example.image, config.color_jitter, rng))
    return example


def _resize(
    example: Example, config: TrainConfig, input_size: tuple[int, int], rng: np.random.Generator
) -> Example:
    height, width = example.image.shape[:2]
    if config.short_sides:
        short = int(rng.choice(config.short_sides))
        return resize(example, *short_side_size(height, width, short, config.long_side))
    return resize(example, *fit(height, width, *input_size))


def short_side_size(height: int, width: int, short: int, limit: int) -> tuple[int, int]:
    """Return (height, width) with the short side `short`, unless the long side passes `limit`."""
    low, high = sorted((height, width))
    if high / low * short > limit:
        short = round(limit * low / high)
    long = int(short * high / low)
    return (short, long) if height <= width else (long, short)


def resize(example: Example, height: int, width: int) -> Example:
    """Resize to (height, width), antialiased when shrinking."""
    old_height, old_width = example.image.shape[:2]
    if (old_height, old_width) == (height, width):
        return example
    method = cv2.INTER_AREA if height < old_height else cv2.INTER_LINEAR
    image = cv2.resize(example.image, (width, height), interpolation=method)
    scale = np.array([width / old_width, height / old_height] * 2, dtype=np.float32)
    return Example(np.asarray(image, np.uint8), example.boxes * scale, example.labels)


def random_crop(example: Example, size: tuple[int, int], rng: np.random.Generator) -> Example:
    """Cut out a window of (height, width); smaller images are padded with the mean colour."""
    height, width = example.image.shape[:2]
    top = int(rng.integers(0, max(0, height - size[0]) + 1))
    left = int(rng.integers(0, max(0, width - size[1]) + 1))
    window = np.empty((*size, 3), np.uint8)
    window[:] = PAD_BGR
    part = example.image[top : top + size[0], left : left + size[1]]
    window[: part.shape[0], : part.shape[1]] = part
    shifted = example.boxes - np.array([left, top] * 2, np.float32)
    clipped = np.clip(shifted, 0, np.array([size[1], size[0]] * 2, np.float32))
    keep = _areas(clipped) >= MIN_VISIBLE * np.maximum(_areas(shifted), 1e-6)
    return Example(window, clipped[keep], example.labels[keep])


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    size = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(size[:, 0] * size[:, 1], np.float32)


def flip(example: Example) -> Example:
    """Mirror left and right."""
    width = example.image.shape[1]
    boxes = example.boxes.copy()
    boxes[:, [0, 2]] = width - example.boxes[:, [2, 0]]
    return Example(np.ascontiguousarray(example.image[:, ::-1]), boxes, example.labels)


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

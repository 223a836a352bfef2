"""Image and boxes → what the network sees in training. NumPy and OpenCV only.

Images are uint8 BGR [h, w, 3]; boxes float32 [n, 4], xyxy in pixels of the image.

Every function that draws takes its draws from the generator it is given, in a fixed order, and
draws nothing for what a recipe leaves off: an example stays the same whatever is added here.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.preprocess import PAD_BGR, fit
from nmsfree_training.config import TrainConfig

MIN_VISIBLE = 0.3  # share of a box's area that a crop must keep, or the object is dropped
OFF = (1.0, 1.0)  # of `TrainConfig.scale`


class Example(NamedTuple):
    """One image with its objects.

    Attributes:
        image: uint8 [h, w, 3], BGR; a view of a larger one where it was cut.
        boxes: float32 [n, 4], xyxy in pixels of the image.
        labels: int64 [n].
        names: files it was made of.
        failed: (file, reason) of images that could not be used and were replaced.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...] = ()
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

"""A sample of a dataset → its picture in memory, checked against its annotation."""

import numpy as np
from numpy.typing import NDArray

from nmsfree.data.coco import Sample
from nmsfree.errors import InputError
from nmsfree.images import Reduction, read_reduced
from nmsfree.preprocess import fit
from nmsfree_training.augment import Example, short_side_size
from nmsfree_training.config import TrainConfig

# A JPEG can be decoded at these fractions of its size.
REDUCTIONS: tuple[Reduction, ...] = (8, 4, 2)
# A reduced JPEG must still be this many times larger than what is needed of it. Measured against
# decoding it whole, both resized by area: 41 … 52 dB and 3 % of sharpness; without this margin
# 35 … 45 dB and 20 %. Resizing by linear interpolation instead: 28 … 43 dB.
MARGIN = 2


def read_example(sample: Sample, needed: tuple[int, int]) -> Example:
    """Read one image and the objects to train on: clipped to the image, and no crowds.

    JPEGs much larger than needed are decoded at a fraction of their size, which saves half to two
    thirds of the time; boxes are in pixels of what is returned.

    Args:
        needed: the largest (height, width) that the recipe resizes the image to.

    Raises:
        InputError: the file cannot be read, or its size differs from the annotation.
    """
    image, (height, width) = _read(sample, needed)
    if (height, width) != (sample.height, sample.width):
        raise InputError(
            f"{sample.path}: is {width} × {height} pixels, annotated as "
            f"{sample.width} × {sample.height}"
        )
    keep = ~sample.iscrowd
    # What reaches out of the picture cannot be seen, whether a recipe crops or not.
    boxes = np.clip(sample.boxes[keep], 0, np.array([width, height] * 2, np.float32))
    # By the long side: in a thin picture the last pixel is a large part of the short one.
    reduction = round(max(height, width) / max(image.shape[:2]))
    if reduction > 1:  # a last pixel that is not whole widens the picture, not what is in it
        boxes = boxes / np.float32(reduction)
    return Example(image, boxes, sample.labels[keep], (str(sample.path),))


def largest_size(
    height: int, width: int, config: TrainConfig, input_size: tuple[int, int]
) -> tuple[int, int]:
    """Return the largest (height, width) to which a recipe resizes an image of that size."""
    sizes = [fit(height, width, *input_size)]  # also what a mosaic makes of it at most
    if config.short_sides:
        sizes.append(short_side_size(height, width, max(config.short_sides), config.long_side))
    factor = max(1.0, *config.scale)
    return round(max(s[0] for s in sizes) * factor), round(max(s[1] for s in sizes) * factor)


def _read(sample: Sample, needed: tuple[int, int]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the picture and the (height, width) of its file."""
    reduction: Reduction = next(
        (
            r
            for r in REDUCTIONS
            if sample.height >= r * MARGIN * needed[0] and sample.width >= r * MARGIN * needed[1]
        ),
        1,
    )
    return read_reduced(sample.path, reduction)

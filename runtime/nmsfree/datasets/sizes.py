"""How large objects come out in a model's input, and which input size a dataset asks for."""

import math

import numpy as np
from numpy.typing import NDArray

LEAST = 8.0  # pixels: no detector here is trained on objects with a shorter side
HARD = 16.0  # pixels: two cells of the finest map
FEW_LOST, FEW_HARD = 0.01, 0.1  # shares of objects under them that a proposed size accepts
STEP, SMALLEST, LARGEST = 32, 256, 1280  # pixels; 32 is the coarsest stride

Sizes = NDArray[np.float64]  # [n, 2], width and height in pixels
HeightWidth = tuple[int, int]


def count_small(objects: Sizes, pictures: Sizes, size: HeightWidth) -> tuple[int, int]:
    """Count the objects whose shorter side is below `LEAST`, and below `HARD`, in the input.

    Objects are [n, 2], and so are the pictures they are in, which are fitted into the input.
    """
    height, width = size
    scale = np.minimum(width / pictures[:, 0], height / pictures[:, 1])
    sides = objects.min(axis=1) * scale
    return int((sides < LEAST).sum()), int((sides < HARD).sum())


def propose_size(objects: Sizes, pictures: Sizes) -> HeightWidth:
    """Return the smallest (height, width) in which few objects come out small.

    Of the shape of the middle picture, in steps of 32 pixels from 256 to 1280 along the longer
    side, and not above the pictures' own size: more pixels show nothing more.
    """
    width, height = np.median(pictures, axis=0).tolist() if len(pictures) else (SMALLEST, SMALLEST)
    longer = max(width, height)
    last = min(LARGEST, STEP * math.ceil(longer / STEP))
    size = (SMALLEST, SMALLEST)
    for side in range(min(SMALLEST, last), last + 1, STEP):
        h, w = (max(STEP, STEP * round(each * side / longer / STEP)) for each in (height, width))
        size = (h, w)
        lost, hard = count_small(objects, pictures, size)
        if lost <= FEW_LOST * len(objects) and hard <= FEW_HARD * len(objects):
            break
    return size

"""A picture that any language makes alike, to ask two engines the same question."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def canary(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return a BGR picture of coloured squares, uint8 [height, width, 3].

    Unsigned 32-bit arithmetic, which wraps, and nothing else. Channel c of pixel (x, y) is
    (3 · h(32) + h(8)) / 4, rounded down, where of the square of side s that the pixel is in

        h(s) = the upper 8 bits of k · 2246822519, k = i xor (i / 2^15),
        i = (seed + s + 3 · (x / s) + 12288 · (y / s) + c) · 2654435761.
    """
    y, x, c = (axis.astype(np.uint32) for axis in np.ogrid[:height, :width, :3])
    picture = np.zeros((height, width, 3), np.uint32)
    for side, weight in ((32, 3), (8, 1)):
        number: NDArray[Any] = np.uint32(seed + side) + 3 * (x // side) + 12288 * (y // side) + c
        number = number * np.uint32(2654435761)
        number = (number ^ (number >> 15)) * np.uint32(2246822519)
        picture += weight * (number >> 24)
    return (picture // 4).astype(np.uint8)

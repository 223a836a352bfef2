"""Letterbox: any BGR image → the model's fixed input, and the way back for boxes.

Defined here once; runtime, evaluation, training's evaluation, parity gate and benchmark use it.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.spec import Interpolation

# ImageNet mean, (0.406, 0.456, 0.485)·255 rounded: close to zero after normalisation, as the
# zero padding of training is. Black would not be.
PAD_BGR = (104, 116, 124)

_CV2_INTERPOLATION = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}


@dataclass(frozen=True)
class Geometry:
    """How one source image was placed in the model's input.

    Attributes:
        height, width: size of the source image in pixels.
        scale_y, scale_x: input pixels per source pixel (they differ by rounding only).
    """

    height: int
    width: int
    scale_y: float
    scale_x: float

    def to_source(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes float32 [n, 4], xyxy input pixels, to source pixels, clipped."""
        limit = np.array([self.width, self.height] * 2, dtype=np.float32)
        inside: NDArray[np.float32] = np.clip(boxes / self._scale(), np.float32(0), limit)
        return inside

    def to_input(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes float32 [n, 4], xyxy in source pixels, to input pixels."""
        return (boxes * self._scale()).astype(np.float32)

    def _scale(self) -> NDArray[np.float32]:
        return np.array([self.scale_x, self.scale_y] * 2, dtype=np.float32)


def fit(height: int, width: int, input_height: int, input_width: int) -> tuple[int, int]:
    """Return the (height, width) of an image scaled to fit into the input, aspect kept."""
    scale = min(input_height / height, input_width / width)
    return (
        min(input_height, max(1, round(height * scale))),
        min(input_width, max(1, round(width * scale))),
    )


@lru_cache(maxsize=64)
def _pad_row(width: int) -> NDArray[np.uint8]:
    """uint8 [width, 3]: numpy copies a row 70 times as fast as it repeats a pixel."""
    row = np.tile(np.array(PAD_BGR, np.uint8), (width, 1))
    row.flags.writeable = False
    return row


def letterbox(
    image: NDArray[np.uint8],
    out: NDArray[np.uint8],
    interpolation: Interpolation = "linear",
) -> Geometry:
    """Resize `image` into the upper left of `out` and pad right and bottom.

    Args:
        image: uint8 [h, w, 3], BGR, any size.
        out: uint8 [H, W, 3], written in place, BGR.
        interpolation: how pixels are resampled; see `ModelSpec.interpolation`.
    """
    height, width = image.shape[:2]
    new_height, new_width = fit(height, width, out.shape[0], out.shape[1])
    placed = out[:new_height, :new_width]
    if (new_height, new_width) == (height, width):
        placed[:] = image
    else:
        # cv2.resize writes a strided destination only by copying, so resize first.
        placed[:] = cv2.resize(
            image, (new_width, new_height), interpolation=_CV2_INTERPOLATION[interpolation]
        )
    if new_height < out.shape[0]:
        out[new_height:] = _pad_row(out.shape[1])
    if new_width < out.shape[1]:
        out[:new_height, new_width:] = _pad_row(out.shape[1] - new_width)
    return Geometry(height, width, new_height / height, new_width / width)

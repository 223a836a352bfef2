"""Any BGR picture → the model's fixed input, as its description says, and the way back for boxes.

Defined here once; runtime, evaluation, training's evaluation, parity gate and benchmark use it.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.detections import Detections
from nmsfree.errors import MissingExtraError
from nmsfree.images import REDUCTIONS, Reduce, Reduction
from nmsfree.spec import ModelSpec, Resize

_CV2_INTERPOLATION = {
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
}
LETTERBOX = Resize()  # of this project's own networks
# ImageNet mean, (0.406, 0.456, 0.485)·255 rounded: close to zero after normalisation, as the
# zero padding of training is. Black would not be.
PAD_BGR = LETTERBOX.pad


@dataclass(frozen=True)
class Geometry:
    """How one source image was placed in the model's input."""

    height: int  # of the source image in pixels
    width: int
    scale_y: float  # input pixels per source pixel; in a letterbox the two differ by rounding
    scale_x: float
    top: int = 0  # input pixels before the image
    left: int = 0

    def to_source(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes float32 [n, 4], xyxy input pixels, to source pixels, clipped."""
        offset = np.array([self.left, self.top] * 2, dtype=np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, dtype=np.float32)
        limit = np.array([self.width, self.height] * 2, dtype=np.float32)
        inside: NDArray[np.float32] = np.clip((boxes - offset) / scale, np.float32(0), limit)
        return inside


def fit(height: int, width: int, input_height: int, input_width: int) -> tuple[int, int]:
    """Return the (height, width) of an image scaled to fit into the input, aspect kept."""
    scale = min(input_height / height, input_width / width)
    return (
        min(input_height, max(1, round(height * scale))),
        min(input_width, max(1, round(width * scale))),
    )


@lru_cache(maxsize=64)
def _pad_row(width: int, color: tuple[int, int, int]) -> NDArray[np.uint8]:
    """uint8 [width, 3]: numpy copies a row 70 times as fast as it repeats a pixel."""
    row = np.tile(np.array(color, np.uint8), (width, 1))
    row.flags.writeable = False
    return row


def resize_into(
    image: NDArray[np.uint8], out: NDArray[np.uint8], resize: Resize = LETTERBOX
) -> Geometry:
    """Resize `image` into `out`, and pad what is left of it.

    Args:
        image: uint8 [h, w, 3], BGR, any size.
        out: uint8 [H, W, 3], written in place, BGR.

    Raises:
        MissingExtraError: `resize` wants antialiasing, and Pillow is not installed.
    """
    (height, width), (out_height, out_width) = image.shape[:2], out.shape[:2]
    new_height, new_width = _placed(height, width, out_height, out_width, resize)
    top = left = 0
    if resize.place == "center":  # an odd pixel of padding goes to the right and to the bottom
        top, left = (out_height - new_height) // 2, (out_width - new_width) // 2
    bottom, right = top + new_height, left + new_width
    placed = out[top:bottom, left:right]
    # cv2.resize writes a strided destination only by copying, so resize first.
    placed[:] = _resized(image, new_height, new_width, resize)
    for rows in (out[:top], out[bottom:]):
        if len(rows):
            rows[:] = _pad_row(out_width, resize.pad)
    for columns in (out[top:bottom, :left], out[top:bottom, right:]):
        if columns.shape[1]:
            columns[:] = _pad_row(columns.shape[1], resize.pad)
    return Geometry(height, width, new_height / height, new_width / width, top, left)


def _placed(
    height: int, width: int, out_height: int, out_width: int, resize: Resize
) -> tuple[int, int]:
    """The (height, width) that a picture takes in the input."""
    if resize.kind == "stretch":
        return out_height, out_width
    new_height, new_width = fit(height, width, out_height, out_width)
    if not resize.enlarge and new_height * new_width > height * width:
        return height, width
    return new_height, new_width


def resized_as(image: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.uint8]:
    """The picture in the size that it takes in a model's input, without any padding."""
    h, w = image.shape[:2]
    height, width = _placed(h, w, spec.height, spec.width, spec.resize)
    return _resized(image, height, width, spec.resize)


def reduction_for(spec: ModelSpec) -> Reduce:
    """By how much a JPEG can be reduced, and not be smaller than in the model's input."""

    def choose(height: int, width: int) -> Reduction:
        h, w = spec.source or _placed(height, width, spec.height, spec.width, spec.resize)
        return next((r for r in REDUCTIONS if height >= r * h and width >= r * w), 1)

    return choose


def in_file(
    found: Detections, image: NDArray[np.uint8], size: tuple[int, int] | None
) -> Detections:
    """With boxes in pixels of a file of (height, width) `size`, where `image` may be reduced."""
    if size is None or image.shape[:2] == size:
        return found
    height, width = size
    # By the long side, as in a thin picture the last pixel is a large part of the short one.
    reduction = round(max(size) / max(image.shape[:2]))
    limit = np.array([width, height] * 2, np.float32)
    return replace(found, xyxy=np.minimum(found.xyxy * np.float32(reduction), limit))


def _resized(
    image: NDArray[np.uint8], height: int, width: int, resize: Resize
) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    if not resize.antialias:
        how = _CV2_INTERPOLATION[resize.interpolation]
        return cv2.resize(image, (width, height), interpolation=how)  # type: ignore[return-value]
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("an antialiased resize", "nmsfree[pillow]") from None
    # The rows first, always: recent versions of Pillow do the columns of tall pictures first, those
    # that networks were trained with did not, and what is rounded between differs.
    narrow = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(narrow.resize((width, height), Image.Resampling.BILINEAR))

"""Handwritten digits as smooth pen strokes of any size.

The source is the UCI Optical Recognition of Handwritten Digits set by E. Alpaydin and C. Kaynak
(UCI Machine Learning Repository, CC BY 4.0, DOI 10.24432/C50P49), shipped as `digits.npz`;
see `digits_ATTRIBUTION.txt`.
"""

import functools
import math
from dataclasses import dataclass
from importlib import resources

import cv2
import numpy as np
from numpy.typing import NDArray

UPSAMPLE = 6  # field pixels for one pixel of the 8×8 source
BORDER = 2  # empty source pixels around a digit, so that strokes close at its edge
MARGIN = 1  # pixels around the ink box in `Glyph.alpha`, for the anti-aliased rim
MAX_TILT = math.radians(15)
HELD_OUT = (2, 5, 8)  # of every ten instances of a class these are kept from training: 30 %


@dataclass(frozen=True)
class Digits:
    """The source: images uint8 [1797, 8, 8] of 0 … 16, labels uint8 [1797] of 0 … 9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Glyph:
    """One drawn digit.

    Attributes:
        alpha: float32 [h + 2, w + 2], how much a pixel is covered with ink, 0 … 1. The ink
            (alpha ≥ 0.5) touches all four sides of the inner h × w box; around it `MARGIN`.
        label: 0 … 9.
        instance: index of the handwritten digit in the source.
    """

    alpha: NDArray[np.float32]
    label: int
    instance: int

    @property
    def width(self) -> int:
        """Width of the ink box in pixels."""
        return int(self.alpha.shape[1]) - 2 * MARGIN

    @property
    def height(self) -> int:
        """Height of the ink box in pixels."""
        return int(self.alpha.shape[0]) - 2 * MARGIN


@functools.cache
def load_digits() -> Digits:
    """Return the bundled handwritten digits."""
    path = resources.files("nmsfree.data").joinpath("digits.npz")
    with path.open("rb") as file, np.load(file) as arrays:
        return Digits(arrays["images"], arrays["labels"])


@functools.cache
def instances(held_out: bool) -> tuple[NDArray[np.int64], ...]:
    """Return, per class 0 … 9, the source indices of the held-out or of the training digits.

    The two are disjoint and split every class 30 to 70.
    """
    labels = load_digits().labels
    of_class = [np.flatnonzero(labels == label) for label in range(10)]
    return tuple(
        index[np.isin(np.arange(len(index)) % 10, HELD_OUT) == held_out] for index in of_class
    )


@functools.lru_cache(maxsize=2048)
def _field(instance: int) -> NDArray[np.float32]:
    """Return the digit as a smooth ink density, float32 [72, 72], about 0 … 1.

    The source's pixels average the ink of 4×4 finer ones, which fills small loops; subtracting
    part of a blurred copy opens them again.
    """
    source = load_digits().images[instance].astype(np.float32) / 16
    padded = np.pad(source, BORDER)
    field = cv2.resize(padded, None, fx=UPSAMPLE, fy=UPSAMPLE, interpolation=cv2.INTER_CUBIC)
    smooth = cv2.GaussianBlur(field, (0, 0), UPSAMPLE * 0.3)
    around = cv2.GaussianBlur(field, (0, 0), UPSAMPLE * 1.2)
    return np.asarray(smooth + 0.8 * (smooth - around), dtype=np.float32)


def draw_glyph(rng: np.random.Generator, instance: int, longest_side: float) -> Glyph:
    """Draw a digit with a random slight rotation, stretch and pen width.

    Args:
        rng: source of the variation.
        instance: index of the handwritten digit.
        longest_side: wanted longest side of the ink box in pixels; met within 1.5 px.
    """
    tilt, stretch, level = rng.uniform((-MAX_TILT, 0.85, 0.34), (MAX_TILT, 1.15, 0.5)).tolist()
    field = _field(instance)
    level *= float(field.max())
    cos, sin = math.cos(tilt), math.sin(tilt)
    linear = np.array([[cos * stretch, -sin], [sin * stretch, cos]])
    rows, columns = np.nonzero(field >= level)
    corners = linear @ np.stack([columns, rows])  # [2, ink pixels], xy
    low, high = corners.min(axis=1), corners.max(axis=1)
    scale = longest_side / float((high - low).max() + 1)
    pad = MARGIN + 2
    warp = np.column_stack([linear * scale, pad - low * scale])
    width, height = (math.ceil(side) + 2 * pad + 1 for side in ((high - low) * scale).tolist())
    density = cv2.warpAffine(field, warp, (width, height), flags=cv2.INTER_LINEAR)
    # The density falls from 1 to 0 over about two source pixels; the rim shall be about 1 px wide.
    sharpness = max(2.5, 1.6 * scale * UPSAMPLE)
    alpha = np.clip(0.5 + (density - level) * sharpness, 0, 1).astype(np.float32)
    label = int(load_digits().labels[instance])
    return Glyph(_crop_to_ink(alpha), label, instance)


def _crop_to_ink(alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut to the ink box and `MARGIN` around it."""
    ink = alpha >= 0.5
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return alpha[
        rows[0] - MARGIN : rows[-1] + 1 + MARGIN, columns[0] - MARGIN : columns[-1] + 1 + MARGIN
    ]

"""Where the digits of a scene stand: sizes, places, and the overlapping pairs."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """One drawn digit."""

    # float32 [h + 2, w + 2], how much a pixel is covered with ink, 0 … 1. The ink (alpha ≥ 0.5)
    # touches all four sides of the inner h × w box; around it `MARGIN`.
    alpha: NDArray[np.float32]
    label: int  # 0 … 9
    instance: int  # index of the handwritten digit in the source

    @property
    def size(self) -> NDArray[np.int64]:
        """Width and height of the ink box in pixels."""
        return np.array(self.alpha.shape[::-1]) - 2 * MARGIN


@functools.cache
def load_digits() -> Digits:
    """Return the bundled handwritten digits, see `ATTRIBUTION.txt`."""
    path = resources.files("nmsfree.datasets.digits").joinpath("digits.npz")
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
    """Draw a handwritten digit with a random slight rotation, stretch and pen width.

    The longest side of its ink box is met within 1.5 px.
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


SIDE = 256  # width and height of a scene in pixels
MIN_SIDE, MAX_SIDE = 14, 110  # longest side of a digit's box in pixels
PAIR_IOU = (0.5, 0.75)
PAIR_SIDES = (30, 100)  # smaller pairs cannot be told apart
MAX_SHARED = 0.2  # of the smaller box; keeps the IoU of digits that are no pair under 0.2
MAX_HIDDEN = 0.5  # of the lower digit's ink in a pair
GAP = 2  # pixels left free around the upper digit of a pair

Pools = Sequence[NDArray[np.int64]]


@dataclass(frozen=True)
class Placed:
    """A digit whose ink box has its top left corner at (x, y) in scene pixels."""

    glyph: Glyph
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Ink box, xyxy; the right and lower edges are exclusive."""
        width, height = self.glyph.size.tolist()
        return (self.x, self.y, self.x + width, self.y + height)


Group = tuple[Placed, ...]  # one digit, or a pair with the lower one first


def clear_of(alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the ink grown by `GAP` pixels, the part of a lower digit that stays undrawn."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * GAP + 1, 2 * GAP + 1))
    grown = np.pad(alpha, GAP)
    return np.asarray(cv2.dilate(grown, kernel), dtype=np.float32)


def lay_out(rng: np.random.Generator, pools: Pools, pairs: int, singles: int) -> list[Group]:
    """Place digits so that only the digits of a pair overlap much; large groups come first.

    `pools` are the source indices to draw from, per class; `pairs` counts same-class pairs with an
    IoU within `PAIR_IOU`, `singles` the other digits.
    """
    shrink = 1.0
    while True:
        groups = [_pair(rng, pools, _side(rng, *PAIR_SIDES, shrink)) for _ in range(pairs)]
        sides = [_side(rng, MIN_SIDE + 1.5, MAX_SIDE - 1.5, shrink) for _ in range(singles)]
        groups += [_single(rng, pools, side) for side in sides]
        placed = _place_all(rng, sorted(groups, key=_area, reverse=True))
        if placed is not None:
            return placed
        shrink *= 0.85


def _side(rng: np.random.Generator, low: float, high: float, shrink: float) -> float:
    """Draw a length, log-uniform, so that small digits are as frequent as large ones."""
    side = math.exp(rng.uniform(math.log(low), math.log(high)))
    return max(low, side * shrink)


def _single(rng: np.random.Generator, pools: Pools, side: float) -> Group:
    return (Placed(draw_glyph(rng, int(rng.choice(pools[int(rng.integers(10))])), side), 0, 0),)


def _pair(rng: np.random.Generator, pools: Pools, side: float) -> Group:
    """Draw two instances of one class over each other, both still to be recognised."""
    target = rng.uniform(*PAIR_IOU)
    while True:
        pool = pools[int(rng.integers(10))]
        lower_instance, upper_instance = rng.choice(pool, 2, replace=False).tolist()
        lower = draw_glyph(rng, lower_instance, side)
        upper = draw_glyph(rng, upper_instance, side * rng.uniform(0.88, 1.13))
        cover = clear_of(upper.alpha)
        for x, y in _offsets(rng, lower, upper, target):
            hidden = np.zeros_like(lower.alpha)
            paste_max(hidden, cover, x - GAP, y - GAP)
            if (lower.alpha * hidden).sum() <= MAX_HIDDEN * lower.alpha.sum():
                return Placed(lower, 0, 0), Placed(upper, x, y)


def _offsets(
    rng: np.random.Generator, lower: Glyph, upper: Glyph, target: float
) -> list[list[int]]:
    """Return a few offsets [x, y] of `upper` that give an IoU with `lower` near the target."""
    limit = lower.size // 2 + 2
    offsets = rng.integers(-limit, limit + 1, size=(300, 2))
    overlap = np.minimum(lower.size, offsets + upper.size) - np.maximum(0, offsets)  # [300, 2]
    shared = np.maximum(overlap, 0).prod(axis=1)
    iou = shared / (lower.size.prod() + upper.size.prod() - shared)
    allowed = np.flatnonzero((iou >= PAIR_IOU[0]) & (iou <= PAIR_IOU[1]))
    nearest = np.argsort(np.abs(iou[allowed] - target), kind="stable")
    return [[int(x), int(y)] for x, y in offsets[allowed[nearest[:8]]]]


def paste_max(canvas: NDArray[np.float32], patch: NDArray[np.float32], x: int, y: int) -> None:
    """Write max(canvas, patch) where a patch with its top left at (x, y) meets the canvas."""
    top, left = max(y, 0), max(x, 0)
    target = canvas[top : max(y + patch.shape[0], top), left : max(x + patch.shape[1], left)]
    height, width = target.shape
    patch = patch[top - y :, left - x :][:height, :width]
    np.maximum(target, patch, out=target)


def _area(group: Group) -> int:
    left, top, right, bottom = _extent(group)
    return (right - left) * (bottom - top)


def _extent(group: Group) -> tuple[int, int, int, int]:
    """Return the box around all digits of a group."""
    lefts, tops, rights, bottoms = zip(*(digit.box for digit in group), strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _place_all(rng: np.random.Generator, groups: list[Group]) -> list[Group] | None:
    """Move every group to a free place; None where one finds none."""
    taken = np.empty((0, 4))
    placed = []
    for group in groups:
        moved = _place(rng, group, taken)
        if moved is None:
            return None
        placed.append(moved)
        taken = np.concatenate([taken, [digit.box for digit in moved]])
    return placed


def _place(rng: np.random.Generator, group: Group, taken: NDArray[np.float64]) -> Group | None:
    """Try 40 places at once and take the first where little of any box is covered."""
    left, top, right, bottom = _extent(group)
    room = np.array([SIDE - MARGIN - right, SIDE - MARGIN - bottom])
    moves = rng.integers((MARGIN - left, MARGIN - top), room + 1, size=(40, 2))
    boxes = np.array([digit.box for digit in group], dtype=np.float64)
    moved = boxes[None] + np.tile(moves, 2)[:, None]  # [40, digits, 4]
    shared = _shared_parts(moved, taken).max(axis=(1, 2), initial=0)  # [40]
    free = np.flatnonzero(shared <= MAX_SHARED)
    if not len(free):
        return None
    x, y = moves[free[0]].tolist()
    return tuple(replace(digit, x=digit.x + x, y=digit.y + y) for digit in group)


def _shared_parts(boxes: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return intersection / smaller area, [tries, digits, taken], of boxes [tries, digits, 4]."""
    a, b = boxes[:, :, None], taken[None, None]
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b)]
    shared: NDArray[np.float64] = np.maximum(overlap, 0).prod(axis=-1) / np.minimum(*areas)
    return shared

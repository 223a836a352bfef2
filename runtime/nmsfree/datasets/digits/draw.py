"""Pixels of a digits scene: texture, distractor strokes, digits, noise. All arrays are BGR."""

import functools
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.digits.layout import GAP, MARGIN, SIDE, Group, clear_of, paste_max

LUMA = np.array([0.114, 0.587, 0.299])  # ITU-R BT.601 weights, in BGR order
MIN_CONTRAST = 45.0  # of luma, 0 … 255, between a digit and what is behind it
NOISE_TILE = 2 * SIDE

Image = NDArray[np.uint8]


def paint(rng: np.random.Generator, groups: list[Group]) -> Image:
    """Draw a scene, uint8 [256, 256, 3]: background, strokes, then the groups in their order."""
    canvas = _texture(rng)
    for _ in range(rng.integers(2, 7)):
        _draw_distractor(rng, canvas)
    for group in groups:
        draw_group(rng, canvas, group)
    return _add_noise(rng, canvas)


def _texture(rng: np.random.Generator) -> Image:
    """Return smooth coloured clouds of two scales."""
    base = rng.uniform(30, 225, 3)
    coarse = _clouds(rng, rng.uniform(8, 45), int(rng.integers(3, 7)), 3)
    fine = _clouds(rng, rng.uniform(0, 14), int(rng.integers(10, 30)), 1)
    half = np.clip(base + coarse + fine, 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(half, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def _clouds(
    rng: np.random.Generator, strength: float, cells: int, channels: int
) -> NDArray[np.float32]:
    """Return smooth noise, float32 [128, 128, channels], from a grid of cells × cells values."""
    grid = rng.normal(0, strength, (cells, cells, channels)).astype(np.float32)
    smooth = cv2.resize(grid, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, dtype=np.float32).reshape(SIDE // 2, SIDE // 2, channels)


def _draw_distractor(rng: np.random.Generator, canvas: Image) -> None:
    """Draw one stroke figure that is no digit."""
    figure = _figure(rng, int(rng.integers(5)))
    radius, angle = rng.uniform(9, 45), rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = rng.uniform(0, SIDE, 2)
    lines = [np.round((line @ turn.T * radius + centre) * 16).astype(np.int32) for line in figure]
    colour = rng.uniform(0, 255, 3).tolist()
    thickness = int(rng.integers(1, 2 + int(radius / 9)))
    cv2.polylines(canvas, lines, False, colour, thickness, cv2.LINE_AA, shift=4)


def _figure(rng: np.random.Generator, kind: int) -> list[NDArray[np.float64]]:
    """Lines [n, 2], xy in about −1 … 1."""
    if kind == 0:  # a wave
        t = np.linspace(-1, 1, 40)
        return [np.stack([t * 1.6, 0.3 * np.sin(t * rng.uniform(7, 12))], axis=1)]
    if kind == 1:  # a zigzag
        n = int(rng.integers(5, 9))
        return [np.stack([np.linspace(-1.4, 1.4, n), 0.35 * (-1.0) ** np.arange(n)], axis=1)]
    if kind == 2:  # a cross
        arm = rng.uniform(0.6, 1.0)
        return [np.array([[-1.0, 0], [1, 0]]), np.array([[0, -arm], [0, arm]])]
    if kind == 3:  # a triangle or square
        angles = np.linspace(0, 2 * math.pi, int(rng.integers(3, 5)) + 1)
        return [np.stack([np.cos(angles), np.sin(angles)], axis=1)]
    depth = rng.uniform(0.6, 1.2)  # a bracket
    return [np.array([[depth, -1], [0, -1], [0, 1], [depth, 1]])]


def draw_group(rng: np.random.Generator, canvas: Image, group: Group) -> None:
    """Draw one digit, or a pair: of its lower digit a gap around the upper one stays undrawn."""
    avoid: list[NDArray[np.float64]] = []
    for level, digit in enumerate(group):
        alpha = digit.glyph.alpha
        for upper in group[level + 1 :]:
            covered = np.zeros_like(alpha)
            x, y = upper.x - digit.x - GAP, upper.y - digit.y - GAP
            paste_max(covered, clear_of(upper.glyph.alpha), x, y)
            alpha = alpha * (1 - covered)
        x1, y1, x2, y2 = digit.box
        region = canvas[y1 - MARGIN : y2 + MARGIN, x1 - MARGIN : x2 + MARGIN]
        colour = _ink_colour(rng, region, avoid)
        avoid.append(colour)
        ink = alpha[..., None]
        region[:] = np.round(region * (1 - ink) + ink * colour.astype(np.float32))


def _ink_colour(
    rng: np.random.Generator, behind: Image, avoid: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Draw a BGR colour that stands out from the pixels behind and from the pair's other ink."""
    ground = behind.reshape(-1, 3).mean(axis=0)
    colours = rng.uniform(0, 255, (24, 3))
    contrast = np.abs((colours - ground) @ LUMA)
    apart = np.ones(len(colours), dtype=bool)
    for other in avoid:
        apart &= np.linalg.norm(colours - other, axis=1) >= 130
    good = np.flatnonzero(apart & (contrast >= MIN_CONTRAST))
    pick = int(good[0]) if len(good) else int(np.argmax(contrast * (apart + 0.01)))
    chosen: NDArray[np.float64] = colours[pick]
    return chosen


@functools.cache
def _noise_tile() -> NDArray[np.float32]:
    """Return unit normal noise, float32 [512, 512, 3]; windows of it serve all scenes."""
    tile = np.random.default_rng(0).standard_normal((NOISE_TILE, NOISE_TILE, 3), dtype=np.float32)
    return np.asarray(tile, dtype=np.float32)


def _add_noise(rng: np.random.Generator, canvas: Image) -> Image:
    """Add normal noise of a random mild strength, standard deviation 0 … 7 grey levels."""
    y, x = rng.integers(0, NOISE_TILE - SIDE, 2).tolist()
    noise = _noise_tile()[y : y + SIDE, x : x + SIDE] * np.float32(rng.uniform(0, 7))
    return np.asarray(cv2.add(canvas, noise, dtype=cv2.CV_8U), dtype=np.uint8)

"""Annotated pictures: boxes and labels that stay readable on bright, dark and small images."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.detections import Detection, Detections
from nmsfree.errors import InputError
from nmsfree.images import as_bgr
from nmsfree.text import shown

Bgr = tuple[int, int, int]
Rect = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the drawn picture

FONT = cv2.FONT_HERSHEY_SIMPLEX
INK: Bgr = (0, 0, 0)  # text: black has a contrast above 4.5 on every colour of the palette
HALO: Bgr = (16, 16, 16)  # dark rim outside a box line, so that it stands out on its own colour
COMFORTABLE_SIDE = 640  # pictures smaller than this are shown enlarged, see `zoom_for`
GAP = "  "  # between name and confidence; OpenCV 5's font has a narrow space
# Hue 0 … 1, saturation, value of the first classes, chosen by eye.
_FIRST_HSV = (
    (0.600, 0.85, 1.00),  # azure
    (0.090, 1.00, 1.00),  # orange
    (0.390, 0.90, 0.80),  # green
    (0.920, 0.70, 1.00),  # pink
    (0.150, 0.90, 1.00),  # yellow
    (0.500, 0.80, 0.95),  # cyan
    (0.755, 0.62, 1.00),  # violet
    (0.000, 0.85, 0.95),  # red
    (0.250, 0.80, 0.90),  # lime
    (0.840, 0.80, 0.85),  # magenta
)
# The later ones are picked from this grid, each as far as possible from those before it.
_GRID_HSV = [(h / 36, s, v) for h in range(36) for s in (0.4, 0.7, 1.0) for v in (0.6, 0.8, 1.0)]
DARKEST = 50  # CIE lightness of a picked colour, 0 … 100: readable on black too
PALETTE_SIZE = 80  # colours repeat after this many classes


@dataclass(frozen=True)
class Style:
    """Sizes in pixels of the drawn picture.

    Attributes:
        line: width of a box line.
        text: height of a capital letter.
        pad: space between the text and the rim of its label.
    """

    line: int
    text: int
    pad: int

    @classmethod
    def for_size(cls, height: int, width: int) -> "Style":
        """Sizes for a picture: they grow with its diagonal, capitals never below 7 pixels."""
        diagonal = math.hypot(height, width)
        text = max(7, round(5 + diagonal * 0.0045))  # 10 at 768 × 768, 15 at 1080p, 25 at 4K
        return cls(line=max(1, round(diagonal / 700)), text=text, pad=max(3, round(text * 0.45)))


def color_of(class_id: int) -> Bgr:
    """Return the BGR colour of a class: the same in every picture."""
    return _palette()[class_id % PALETTE_SIZE]


@lru_cache(maxsize=1)
def _palette() -> list[Bgr]:
    """Colours that differ as much as possible, measured in CIE Lab."""
    colors = [_bgr(*hsv) for hsv in (*_FIRST_HSV, *_GRID_HSV)]
    lab = cv2.cvtColor(np.array([colors], dtype=np.float32) / 255, cv2.COLOR_BGR2Lab)[0]
    lab[:, 0] /= 2  # lightness alone does not tell two lines apart, hue does
    chosen = list(range(len(_FIRST_HSV)))
    nearest = np.linalg.norm(lab[:, None] - lab[None, chosen], axis=2).min(axis=1)
    nearest[lab[:, 0] < DARKEST / 2] = 0
    while len(chosen) < PALETTE_SIZE:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return [colors[i] for i in chosen]


def _bgr(hue: float, saturation: float, value: float) -> Bgr:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(blue * 255), round(green * 255), round(red * 255)


def zoom_for(height: int, width: int) -> int:
    """Return the whole factor that brings the longer side to 640 pixels or more, at most 8.

    A label is 13 pixels high at least, as much as many objects of a 256 × 256 picture.
    """
    return min(8, max(1, math.ceil(COMFORTABLE_SIDE / max(height, width))))


def draw(
    image: NDArray[np.uint8],
    detections: Detections,
    *,
    zoom: int = 1,
    labels: bool = True,
    style: Style | None = None,
) -> NDArray[np.uint8]:
    """Return a new picture with the detections drawn on it; `image` is left as it was.

    Args:
        image: uint8 [h, w, 3], BGR.
        detections: boxes in pixels of `image`.
        zoom: whole factor by which the picture is enlarged before drawing; see `zoom_for`.
        labels: write class name and confidence beside each box.
        style: line width and text size; None derives them from the size of the picture.

    Returns:
        uint8 [h·zoom, w·zoom, 3], BGR.

    Raises:
        InputError: `image` is not such an array, zoom is below 1, or a box is not finite.
    """
    if zoom < 1:
        raise InputError(f"zoom is {zoom}, expected 1 or more")
    if not np.isfinite(detections.xyxy).all():
        raise InputError("detections have boxes that are not finite numbers: they cannot be drawn")
    image = as_bgr(image)
    height, width = image.shape[0] * zoom, image.shape[1] * zoom
    picture = _enlarge(image, height, width)
    style = style or Style.for_size(height, width)
    placed = [(_rect(d, zoom, height, width), d) for d in detections]
    for rect, detection in reversed(placed):  # the best one ends on top
        _draw_box(picture, rect, color_of(detection.class_id), style)
    if labels:
        _draw_labels(picture, placed, style)
    return picture


def _enlarge(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image.copy(order="C")
    large = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large, dtype=np.uint8)


def _rect(detection: Detection, zoom: int, height: int, width: int) -> Rect:
    """Box in whole pixels of the drawn picture; the right and lower edge are its last pixels."""
    x1, y1, x2, y2 = (v * zoom for v in detection.box)
    left, top = min(max(round(x1), 0), width - 1), min(max(round(y1), 0), height - 1)
    right, bottom = (
        min(max(round(x2) - 1, left), width - 1),
        min(max(round(y2) - 1, top), height - 1),
    )
    return left, top, right, bottom


def _draw_box(picture: NDArray[np.uint8], rect: Rect, color: Bgr, style: Style) -> None:
    x1, y1, x2, y2 = rect
    rim = style.line + 2 * max(1, style.line // 2)
    cv2.rectangle(picture, (x1, y1), (x2, y2), HALO, rim, cv2.LINE_AA)
    cv2.rectangle(picture, (x1, y1), (x2, y2), color, style.line, cv2.LINE_AA)


def _draw_labels(
    picture: NDArray[np.uint8], placed: Sequence[tuple[Rect, Detection]], style: Style
) -> None:
    """Place the labels, best detection first, each where it covers the least; then paint them."""
    height, width = picture.shape[:2]
    boxes = np.array([rect for rect, _ in placed], dtype=np.int64).reshape(-1, 4)
    taken = np.zeros((0, 4), dtype=np.int64)
    for index, (rect, detection) in enumerate(placed):
        text = f"{shown(detection.class_name)}{GAP}{detection.confidence:.2f}"
        label = _text_size(text, style)
        others = np.delete(boxes, index, axis=0)
        place = _best_place(_places(rect, label, style.line // 2, height, width), taken, others)
        taken = np.vstack([taken, place])
        _draw_label(picture, (int(place[0]), int(place[1])), text, detection.class_id, style)


def _places(
    rect: Rect, label: tuple[int, int], rim: int, height: int, width: int
) -> NDArray[np.int64]:
    """Candidate places of a label, int64 [8, 4] xyxy inside the picture, most wanted first."""
    w, h = label
    x1, y1, x2, y2 = rect[0] - rim, rect[1] - rim, rect[2] + rim + 1, rect[3] + rim + 1
    corners = [
        (x1, y1 - h),  # above, left then right
        (x2 - w, y1 - h),
        (x1, y2),  # below
        (x2 - w, y2),
        (x2, y1),  # beside
        (x1 - w, y1),
        (x1, y1),  # inside
        (x1, y2 - h),
    ]
    placed = [
        (min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0))) for x, y in corners
    ]
    return np.array([(x, y, x + w, y + h) for x, y in placed], dtype=np.int64)


def _best_place(
    places: NDArray[np.int64], taken: NDArray[np.int64], boxes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Choose the place that hides least: labels count much, other objects little."""
    area = (places[0, 2] - places[0, 0]) * (places[0, 3] - places[0, 1])
    hidden = 8 * _overlap(places, taken) + _overlap(places, boxes)
    cost = hidden / area + 0.05 * np.arange(len(places))
    best: NDArray[np.int64] = places[int(np.argmin(cost))]
    return best


def _overlap(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Area of each rectangle of `a` [n, 4] that those of `b` [m, 4] cover, counted singly: [n]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    area: NDArray[np.int64] = np.clip(high - low, 0, None).prod(axis=2).sum(axis=1)
    return area


@lru_cache(maxsize=1024)
def _text_size(text: str, style: Style) -> tuple[int, int]:
    """Width and height in pixels of a label with its rim."""
    scale, thickness = _font(style)
    (width, _), _ = cv2.getTextSize(text, FONT, scale, thickness)
    return int(width) + 2 * style.pad, style.text + 2 * style.pad


def _font(style: Style) -> tuple[float, int]:
    """Return OpenCV's font scale and stroke width for capital letters of the wanted height."""
    return style.text / _capital_height(), max(1, round(style.text / 7))


@lru_cache(maxsize=1)
def _capital_height() -> float:
    """Height in pixels of a capital at font scale 1: OpenCV 4 and 5 have different fonts."""
    scale, canvas = 8.0, np.zeros((400, 400), dtype=np.uint8)
    cv2.putText(canvas, "H", (20, 380), FONT, scale, 255, 1, cv2.LINE_AA)
    return float(np.count_nonzero(canvas.max(axis=1) > 127) / scale)


def _draw_label(
    picture: NDArray[np.uint8], corner: tuple[int, int], text: str, class_id: int, style: Style
) -> None:
    (x, y), (w, h) = corner, _text_size(text, style)
    back = color_of(class_id)
    scale, thickness = _font(style)
    cv2.rectangle(picture, (x, y), (x + w - 1, y + h - 1), back, cv2.FILLED)
    origin = (x + style.pad, y + style.pad + style.text)
    cv2.putText(picture, text, origin, FONT, scale, INK, thickness, cv2.LINE_AA)

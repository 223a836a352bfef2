"""What is drawn on pictures of predictions: dashed boxes, strokes, a strip with counts."""

from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.draw import FONT, HALO, Bgr, Style
from nmsfree.text import shown

Image = NDArray[np.uint8]  # [h, w, 3], BGR
Rect = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the picture
Point = tuple[int, int]

WHITE: Bgr = (255, 255, 255)
GREY: Bgr = (150, 150, 150)
ALARM: Bgr = (70, 70, 255)  # red
BACK: Bgr = (32, 32, 32)
NARROWEST = 440  # pixels of a picture below a strip, whose words need them
PAD = 4  # pixels around a text


def draw_dashed(picture: Image, box: NDArray[np.float32], style: Style) -> None:
    """Draw a dashed white box, xyxy in pixels of the picture."""
    x1, y1, x2, y2 = rect_of(box, picture)
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    for color, width in ((HALO, style.line + 2), (WHITE, style.line)):
        for start, end in pairwise(corners):
            _draw_dashes(picture, start, end, color, width, 4 * style.line + 4)


def _draw_dashes(
    picture: Image, start: Point, end: Point, color: Bgr, width: int, dash: int
) -> None:
    (x1, y1), (x2, y2) = start, end
    length = max(abs(x2 - x1), abs(y2 - y1), 1)
    for at in range(0, length, 2 * dash):
        a, b = at / length, min(at + dash, length) / length
        ends = [(round(x1 + t * (x2 - x1)), round(y1 + t * (y2 - y1))) for t in (a, b)]
        cv2.line(picture, ends[0], ends[1], color, width)


def draw_strokes(picture: Image, box: NDArray[np.float32], both: bool, style: Style) -> None:
    """Strike a box through with its rising diagonal, or cross it out with both."""
    x1, y1, x2, y2 = rect_of(box, picture)
    diagonals = [((x1, y2), (x2, y1)), ((x1, y1), (x2, y2))][: 1 + both]
    for color, width in ((HALO, style.line + 2), (ALARM, style.line)):
        for start, end in diagonals:
            cv2.line(picture, start, end, color, width, cv2.LINE_AA)


def draw_label(picture: Image, box: NDArray[np.float32], text: str, style: Style) -> None:
    """Write black on white above a box, or inside it at the upper rim of the picture."""
    x1, y1, _, _ = rect_of(box, picture)
    scale, thickness = _font(style.text)
    width, height = _width(text, scale, thickness) + 2 * PAD, style.text + 2 * PAD
    x = min(x1, max(0, picture.shape[1] - width))
    y = y1 - height if y1 >= height else y1
    cv2.rectangle(picture, (x, y), (x + width - 1, y + height - 1), WHITE, cv2.FILLED)
    at = (x + PAD, y + PAD + style.text)
    cv2.putText(picture, shown(text), at, FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)


def with_strip(picture: Image, words: list[tuple[str, Bgr]], style: Style) -> Image:
    """Return the picture below a dark strip with coloured words.

    A narrow picture is padded on its right; words that are still too many get smaller.
    """
    height, width = picture.shape[:2]
    text = round(1.2 * style.text)
    scale, thickness = _font(text)
    strip, gap = 3 * text, 2 * text
    whole = np.full((height + strip, max(width, NARROWEST), 3), BACK, dtype=np.uint8)
    whole[strip:, :width] = picture
    widths = [_width(word, scale, thickness) for word, _ in words]
    taken = 2 * PAD + sum(widths) + gap * (len(words) - 1)
    shrink = min(1.0, whole.shape[1] / taken)
    x = float(PAD)
    for (word, color), wide in zip(words, widths, strict=True):
        at = (round(x), 2 * text)
        cv2.putText(whole, shown(word), at, FONT, scale * shrink, color, thickness, cv2.LINE_AA)
        x += (wide + gap) * shrink
    return whole


def rect_of(box: NDArray[np.float32], picture: Image) -> Rect:
    """Whole pixels inside the picture; the right and lower edge are the last pixels."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = (round(v) for v in box.tolist())
    left, top = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return left, top, min(max(x2 - 1, left), width - 1), min(max(y2 - 1, top), height - 1)


def _width(text: str, scale: float, thickness: int) -> int:
    return int(cv2.getTextSize(shown(text), FONT, scale, thickness)[0][0])


def _font(capital: int) -> tuple[float, int]:
    """OpenCV's font scale and stroke width for capitals of this many pixels."""
    return capital / _capital_at_one(), max(1, round(capital / 7))


@lru_cache(maxsize=1)
def _capital_at_one() -> float:
    """Pixels of a capital at font scale 1, measured: OpenCV 4 and 5 have different fonts."""
    scale, canvas = 6.0, np.zeros((300, 300), dtype=np.uint8)
    cv2.putText(canvas, "E", (20, 280), FONT, scale, 255, 1, cv2.LINE_AA)
    return float(np.count_nonzero(canvas.any(axis=1)) / scale)

"""Boxes and names drawn on a small picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.text import shown

Image = NDArray[np.uint8]  # BGR [h, w, 3]
Rect = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the picture

FONT = cv2.FONT_HERSHEY_SIMPLEX
BLACK = (0, 0, 0)
NAME_SCALE, NAME_HEIGHT = 0.4, 14  # of a class name: font scale, pixels of its label
ARROW = 36  # pixels
CROSS = 7  # pixels from the middle of the cross that stands for a box without area


@dataclass(frozen=True)
class Mark:
    """A box to draw.

    Attributes:
        xyxy: corners in source pixels, finite.
        name: written beside it; empty for none.
        color: BGR.
        line: width in pixels.
    """

    xyxy: tuple[float, float, float, float]
    name: str
    color: tuple[int, int, int]
    line: int = 2


def draw_marks(picture: Image, marks: Sequence[Mark], scale: float, shift: tuple[int, int]) -> None:
    """Draw boxes, then the names on top, each where it hides no other name.

    Args:
        picture: drawn on.
        marks: boxes in source pixels.
        scale, shift: from source pixels to those of the picture.
    """
    rects = [_rect(mark, scale, shift) for mark in marks]
    for mark, rect in zip(marks, rects, strict=True):
        x1, y1, x2, y2 = rect
        if _overlap((x1, y1, x2 + 1, y2 + 1), (0, 0, picture.shape[1], picture.shape[0])):
            _draw_box(picture, mark, rect)
        elif mark.xyxy[2] > mark.xyxy[0] and mark.xyxy[3] > mark.xyxy[1]:
            _point_at(picture, mark, rect)
    taken: list[Rect] = []
    for mark, rect in zip(marks, rects, strict=True):
        if mark.name:
            taken.append(_draw_name(picture, mark, rect, taken))


def _rect(mark: Mark, scale: float, shift: tuple[int, int]) -> Rect:
    """Box in whole pixels; corners far outside are brought near, as OpenCV overflows."""
    x1, y1, x2, y2 = np.clip(np.array(mark.xyxy) * scale, -1e4, 1e4).round().astype(int).tolist()
    x, y = shift
    return x1 + x, y1 + y, max(x2 - 1, x1) + x, max(y2 - 1, y1) + y


def _draw_box(picture: Image, mark: Mark, rect: Rect) -> None:
    height, width = picture.shape[:2]
    x1, y1 = max(rect[0], 0), max(rect[1], 0)
    x2, y2 = min(rect[2], width - 1), min(rect[3], height - 1)
    if not (mark.xyxy[2] > mark.xyxy[0] and mark.xyxy[3] > mark.xyxy[1]):
        place = (x1 + x2) // 2, (y1 + y2) // 2
        for color, line in ((BLACK, mark.line + 2), (mark.color, mark.line)):
            cv2.drawMarker(picture, place, color, cv2.MARKER_TILTED_CROSS, 2 * CROSS, line)
    if mark.line > 1:  # a rim; thin lines stand back
        cv2.rectangle(picture, (x1, y1), (x2, y2), BLACK, mark.line + 2, cv2.LINE_AA)
    cv2.rectangle(picture, (x1, y1), (x2, y2), mark.color, mark.line, cv2.LINE_AA)


def _point_at(picture: Image, mark: Mark, rect: Rect) -> None:
    """Draw an arrow at the rim towards a box that lies outside the picture."""
    height, width = picture.shape[:2]
    middle = np.array([(rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2])
    tip = np.clip(middle, (8, 8), (width - 9, height - 9))
    way = (middle - tip) / max(float(np.linalg.norm(middle - tip)), 1.0)
    start, end = (point.round().astype(int).tolist() for point in (tip - way * ARROW, tip))
    for color, line in ((BLACK, mark.line + 2), (mark.color, mark.line)):
        cv2.arrowedLine(picture, start, end, color, line, cv2.LINE_AA, tipLength=0.35)


def _draw_name(picture: Image, mark: Mark, rect: Rect, taken: Sequence[Rect]) -> Rect:
    """Write the name of a box in a filled label; return where."""
    height, width = picture.shape[:2]
    wide = text_width(mark.name, NAME_SCALE) + 6
    x1, y1, x2, y2 = rect
    corners = [(x1 - 1, y1 - NAME_HEIGHT), (x1 - 1, y2 + 1), (x2 - wide, y1 - NAME_HEIGHT),
               (x2 - wide, y2 + 1), (x2 + 1, y1), (x1 - wide, y1), (x1, y1)]  # fmt: skip
    places = [
        (min(max(x, 0), max(width - wide, 0)), min(max(y, 0), height - NAME_HEIGHT))
        for x, y in corners
    ]
    rects = [(x, y, x + wide, y + NAME_HEIGHT) for x, y in places]
    place = min(rects, key=lambda r: sum(_overlap(r, other) for other in taken))
    cv2.rectangle(picture, place[:2], (place[2] - 1, place[3] - 1), mark.color, cv2.FILLED)
    write(picture, mark.name, (place[0] + 3, place[3] - 4), NAME_SCALE, BLACK)
    return place


def _overlap(a: Rect, b: Rect) -> int:
    """Return the area that two rectangles share."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0) * max(high, 0)


def text_width(text: str, scale: float, line: int = 1) -> int:
    """Return the width of a text in pixels."""
    return int(cv2.getTextSize(shown(text), FONT, scale, line)[0][0])


def write(
    picture: Image,
    text: str,
    place: tuple[int, int],
    scale: float,
    color: tuple[int, int, int],
    line: int = 1,
) -> None:
    """Write a text whose base line begins at `place`."""
    cv2.putText(picture, shown(text), place, FONT, scale, color, line, cv2.LINE_AA)

"""Contact sheets: pictures with labelled boxes in a grid, a caption under each."""

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


WIDTH, HEIGHT = 420, 340  # pixels of the picture in a tile
CAPTION = 46  # below it: two lines
GAP = 10  # between tiles
BACK, GROUND, INK, FAINT = (250, 250, 250), (72, 68, 66), (32, 32, 32), (110, 110, 110)


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture of a sheet.

    Attributes:
        image: BGR uint8 [h, w, 3] of any size, or None to show `instead`.
        marks: boxes, drawn in this order.
        title, note: two lines of caption.
        instead: shown where there is no image.
    """

    image: Image | None
    marks: tuple[Mark, ...]
    title: str
    note: str
    instead: str = ""


def make_sheet(tiles: Sequence[Tile], columns: int) -> Image:
    """Arrange tiles row by row.

    Returns:
        BGR uint8 picture, as wide as its fullest row.
    """
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    step_x, step_y = WIDTH + GAP, HEIGHT + CAPTION + GAP
    sheet = np.full((rows * step_y + GAP, columns * step_x + GAP, 3), BACK, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        x, y = GAP + index % columns * step_x, GAP + index // columns * step_y
        sheet[y : y + HEIGHT, x : x + WIDTH] = _picture(tile)
        write(sheet, _fit(tile.title, 0.5), (x + 2, y + HEIGHT + 18), 0.5, INK)
        write(sheet, _fit(tile.note, 0.45), (x + 2, y + HEIGHT + 37), 0.45, FAINT)
    return sheet


def _picture(tile: Tile) -> Image:
    """Return the picture of a tile, [HEIGHT, WIDTH, 3], scaled to fit and centred."""
    canvas = np.full((HEIGHT, WIDTH, 3), GROUND, dtype=np.uint8)
    if tile.image is None:
        x = (WIDTH - text_width(tile.instead, 0.8, 2)) // 2
        write(canvas, tile.instead, (x, HEIGHT // 2 + 8), 0.8, BACK, 2)
        return canvas
    height, width = tile.image.shape[:2]
    left, top, right, bottom = _view(tile.marks, height, width)
    scale = min(WIDTH / (right - left), HEIGHT / (bottom - top))
    size = max(1, min(WIDTH, round(width * scale))), max(1, min(HEIGHT, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    x = round((WIDTH - (right - left) * scale) / 2 - left * scale)
    y = round((HEIGHT - (bottom - top) * scale) / 2 - top * scale)
    x, y = min(max(x, 0), WIDTH - size[0]), min(max(y, 0), HEIGHT - size[1])
    canvas[y : y + size[1], x : x + size[0]] = cv2.resize(tile.image, size, interpolation=how)
    draw_marks(canvas, tile.marks, scale, (x, y))
    return canvas


def _view(marks: Sequence[Mark], height: int, width: int) -> tuple[float, float, float, float]:
    """Return the part of the plane to show: the image and, up to its own size away, its boxes."""
    corners = np.array([(0, 0, width, height), *(mark.xyxy for mark in marks)], dtype=np.float64)
    left, top = np.maximum(corners[:, :2].min(axis=0), (-width, -height)).tolist()
    right, bottom = np.minimum(corners[:, 2:].max(axis=0), (2 * width, 2 * height)).tolist()
    return left, top, right, bottom


def _fit(text: str, scale: float) -> str:
    """Cut a text in its middle so that it fits a tile: a file's end tells most."""
    shown = text
    keep = len(text)
    while keep > 4 and text_width(shown, scale) > WIDTH - 4:
        keep -= 1
        shown = f"{text[: keep // 2]}...{text[-(keep - keep // 2) :]}"
    return shown

"""Boxes and labels that stay readable on bright, dark and small images; contact sheets."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.detections import Detections
from nmsfree.errors import InputError
from nmsfree.images import as_bgr
from nmsfree.text import shown

Image = NDArray[np.uint8]  # [h, w, 3], BGR
Bgr = tuple[int, int, int]
Box = tuple[float, float, float, float]  # xyxy in pixels
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
    """Sizes in pixels of the drawn picture."""

    line: int  # width of a box line
    text: int  # height of a capital letter
    pad: int  # space between the text and the rim of its label

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
    rgb = np.array([colorsys.hsv_to_rgb(*hsv) for hsv in (*_FIRST_HSV, *_GRID_HSV)])
    colors = (rgb[:, ::-1] * 255).round().astype(int)
    lab = cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_BGR2Lab)[0]
    lab[:, 0] /= 2  # lightness alone does not tell two lines apart, hue does
    chosen = list(range(len(_FIRST_HSV)))
    nearest = np.linalg.norm(lab[:, None] - lab[None, chosen], axis=2).min(axis=1)
    nearest[lab[:, 0] < DARKEST / 2] = 0
    while len(chosen) < PALETTE_SIZE:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return [(b, g, r) for b, g, r in colors[chosen].tolist()]


def zoom_for(height: int, width: int) -> int:
    """Return the whole factor that brings the longer side to 640 pixels or more, at most 8.

    A label is 13 pixels high at least, as much as many objects of a 256 × 256 picture.
    """
    return min(8, max(1, math.ceil(COMFORTABLE_SIDE / max(height, width))))


@dataclass(frozen=True)
class Mark:
    """A box to draw."""

    xyxy: Box  # corners in pixels, finite
    name: str  # written beside it; empty for none
    color: Bgr  # of the box, and of the ground of its name
    dashed: bool = False  # the line is interrupted
    thin: bool = False  # a line of one pixel without a rim, which stands back


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
    picture = image.copy(order="C") if zoom == 1 else resized(image, height, width)
    marks = []
    for found in detections:
        x1, y1, x2, y2 = (v * zoom for v in found.box)
        name = f"{shown(found.class_name)}{GAP}{found.confidence:.2f}" if labels else ""
        marks.append(Mark((x1, y1, x2, y2), name, color_of(found.class_id)))
    draw_marks(picture, marks, style or Style.for_size(height, width))
    return picture


def resized(image: Image, height: int, width: int) -> Image:
    """Return a picture of another size, uint8 [height, width, 3]."""
    how = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), dtype=np.uint8)


def draw_marks(picture: Image, marks: Sequence[Mark], style: Style) -> None:
    """Draw boxes, then their names, each where it covers the least.

    The first mark is the most important: it lies on top, and its name takes its place first.
    """
    height, width = picture.shape[:2]
    rects = [pixels_of(mark.xyxy, height, width) for mark in marks]
    for mark, rect in zip(reversed(marks), reversed(rects), strict=True):
        _draw_box(picture, mark, rect, style)
    boxes = np.array(rects, dtype=np.int64).reshape(-1, 4)
    taken = np.zeros((0, 4), dtype=np.int64)
    for index, (mark, rect) in enumerate(zip(marks, rects, strict=True)):
        if not mark.name:
            continue
        label = label_size(mark.name, style)
        others = np.delete(boxes, index, axis=0)
        place = _best_place(_places(rect, label, style.line // 2, height, width), taken, others)
        taken = np.vstack([taken, place])
        x, y, right, bottom = place.tolist()
        cv2.rectangle(picture, (x, y), (right - 1, bottom - 1), mark.color, cv2.FILLED)
        write(picture, mark.name, (x + style.pad, bottom - style.pad), style.text, INK)


def pixels_of(xyxy: Sequence[float], height: int, width: int) -> Rect:
    """Box in whole pixels of a picture; the right and lower edge are its last pixels."""
    x1, y1, x2, y2 = map(round, xyxy)
    left, top = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    right, bottom = min(max(x2 - 1, left), width - 1), min(max(y2 - 1, top), height - 1)
    return left, top, right, bottom


def _draw_box(picture: Image, mark: Mark, rect: Rect, style: Style) -> None:
    x1, y1, x2, y2 = rect
    line = 1 if mark.thin else style.line
    lines = [(HALO, line + 2 * max(1, line // 2)), (mark.color, line)]
    for color, wide in lines[mark.thin :]:
        if not mark.dashed:
            cv2.rectangle(picture, (x1, y1), (x2, y2), color, wide, cv2.LINE_AA)
            continue
        dash = 4 * line + 4
        corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
        for a, way in zip(corners, np.diff(corners, axis=0), strict=False):
            length = max(int(np.abs(way).max()), 1)
            for at in range(0, length, 2 * dash):
                ends = (a + way * min(t, length) / length for t in (at, at + dash))
                start, end = (point.round().astype(int).tolist() for point in ends)
                cv2.line(picture, start, end, color, wide)


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
def label_size(text: str, style: Style) -> tuple[int, int]:
    """Width and height in pixels of a label with its rim."""
    return text_width(text, style.text) + 2 * style.pad, style.text + 2 * style.pad


def text_width(text: str, capital: float) -> int:
    """Return the width in pixels of a text whose capitals are `capital` pixels high."""
    return int(cv2.getTextSize(shown(text), FONT, *_font(capital))[0][0])


def write(picture: Image, text: str, place: tuple[int, int], capital: float, color: Bgr) -> None:
    """Write a text, its base line beginning at `place`, with capitals of so many pixels."""
    scale, line = _font(capital)
    cv2.putText(picture, shown(text), place, FONT, scale, color, line, cv2.LINE_AA)


def _font(capital: float) -> tuple[float, int]:
    """OpenCV's font scale and stroke width for capital letters of the wanted height."""
    return capital / _capital_height(), max(1, round(capital / 7))


@lru_cache(maxsize=1)
def _capital_height() -> float:
    """Height in pixels of a capital at font scale 1: OpenCV 4 and 5 have different fonts."""
    scale, canvas = 8.0, np.zeros((400, 400), dtype=np.uint8)
    cv2.putText(canvas, "H", (20, 380), FONT, scale, 255, 1, cv2.LINE_AA)
    return float(np.count_nonzero(canvas.max(axis=1) > 127) / scale)


# Contact sheets.

WIDTH, HEIGHT = 420, 340  # pixels of the picture in a tile
CAPTION = 46  # below it: two lines
MARGIN = 10  # between tiles
PAPER, GROUND, GREY = (250, 250, 250), (72, 68, 66), (110, 110, 110)
SMALL = Style(line=2, text=9, pad=2)
ARROW = 36  # pixels
CROSS = 14  # pixels of the cross that stands for a box without area


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture of a sheet."""

    image: Image | None  # BGR uint8 [h, w, 3] of any size, or None to show `instead`
    marks: Sequence[Mark]  # boxes in pixels of the image, or outside of it; the first lies on top
    title: str  # title, note: two lines of caption
    note: str
    instead: str = ""  # shown where there is no image


def make_sheet(tiles: Sequence[Tile], columns: int, title: str = "") -> Image:
    """Arrange tiles row by row, below a title if there is one: BGR, as wide as its fullest row."""
    columns = min(columns, len(tiles))
    rows, head = -(-len(tiles) // columns), 24 if title else 0
    step_x, step_y = WIDTH + MARGIN, HEIGHT + CAPTION + MARGIN
    size = head + rows * step_y + MARGIN, columns * step_x + MARGIN
    sheet = np.full((*size, 3), PAPER, dtype=np.uint8)
    if title:
        write(sheet, _fit(title, 10, size[1] - 2 * MARGIN), (MARGIN, head - 2), 10, INK)
    for index, tile in enumerate(tiles):
        x, y = MARGIN + index % columns * step_x, head + MARGIN + index // columns * step_y
        sheet[y : y + HEIGHT, x : x + WIDTH] = _tile_picture(tile)
        write(sheet, _fit(tile.title, 14, WIDTH - 4), (x + 2, y + HEIGHT + 20), 14, INK)
        write(sheet, _fit(tile.note, 11, WIDTH - 4), (x + 2, y + HEIGHT + 40), 11, GREY)
    return sheet


def _tile_picture(tile: Tile) -> Image:
    """Return the picture of a tile, [HEIGHT, WIDTH, 3], scaled to fit and centred."""
    canvas = np.full((HEIGHT, WIDTH, 3), GROUND, dtype=np.uint8)
    if tile.image is None:
        x = (WIDTH - text_width(tile.instead, 17)) // 2
        write(canvas, tile.instead, (x, HEIGHT // 2 + 8), 17, PAPER)
        return canvas
    height, width = tile.image.shape[:2]
    # Shown are the image and, up to its own size away, its boxes.
    corners = np.array([(0, 0, width, height), *(mark.xyxy for mark in tile.marks)], np.float64)
    left, top = np.maximum(corners[:, :2].min(axis=0), (-width, -height)).tolist()
    right, bottom = np.minimum(corners[:, 2:].max(axis=0), (2 * width, 2 * height)).tolist()
    scale = min(WIDTH / (right - left), HEIGHT / (bottom - top))
    wide, high = (
        max(1, min(most, round(side * scale))) for side, most in ((width, WIDTH), (height, HEIGHT))
    )
    x = round((WIDTH - (right - left) * scale) / 2 - left * scale)
    y = round((HEIGHT - (bottom - top) * scale) / 2 - top * scale)
    x, y = min(max(x, 0), WIDTH - wide), min(max(y, 0), HEIGHT - high)
    canvas[y : y + high, x : x + wide] = resized(tile.image, high, wide)
    corners = corners[1:] * scale + (x, y, x, y)
    marks = [replace(m, xyxy=tuple(c)) for m, c in zip(tile.marks, corners.tolist(), strict=True)]
    draw_marks(canvas, [mark for mark in marks if _is_on(canvas, mark.xyxy)], SMALL)
    for mark in marks:
        _draw_pointer(canvas, mark)
    return canvas


def _is_on(picture: Image, xyxy: Box) -> bool:
    height, width = picture.shape[:2]
    return xyxy[0] < width and xyxy[1] < height and xyxy[2] >= 0 and xyxy[3] >= 0


def _draw_pointer(picture: Image, mark: Mark) -> None:
    """Draw a cross on a box without area, an arrow at the rim towards one outside the picture."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = mark.xyxy
    middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    tip = np.clip(middle, (8, 8), (width - 9, height - 9))
    way = (middle - tip) / max(float(np.linalg.norm(middle - tip)), 1.0)
    start, end = (point.round().astype(int).tolist() for point in (tip - way * ARROW, tip))
    for color, line in ((INK, SMALL.line + 2), (mark.color, SMALL.line)):
        if not _is_on(picture, mark.xyxy):
            cv2.arrowedLine(picture, start, end, color, line, cv2.LINE_AA, tipLength=0.35)
        elif x2 <= x1 or y2 <= y1:
            cv2.drawMarker(picture, end, color, cv2.MARKER_TILTED_CROSS, CROSS, line)


def _fit(text: str, capital: float, width: int) -> str:
    """Cut a text in its middle so that it fits: a file's end tells most."""
    cut, keep = text, len(text)
    while keep > 4 and text_width(cut, capital) > width:
        keep -= 1
        cut = f"{text[: keep // 2]}...{text[-(keep - keep // 2) :]}"
    return cut

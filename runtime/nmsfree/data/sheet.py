"""Contact sheets: pictures with labelled boxes in a grid, a caption under each."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.data.sheet_marks import Mark, draw_marks, text_width, write

Image = NDArray[np.uint8]  # BGR [h, w, 3]

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

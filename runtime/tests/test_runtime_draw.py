"""Drawing: inside the picture, readable, stable, and nothing of the caller's is touched."""

import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nmsfree import Detections, InputError
from nmsfree.drawing import (
    CAPTION,
    HEIGHT,
    MARGIN,
    PALETTE_SIZE,
    WIDTH,
    Mark,
    Style,
    Tile,
    _best_place,
    _overlap,
    _places,
    color_of,
    draw,
    draw_marks,
    make_sheet,
    zoom_for,
)

NAMES = tuple(f"class {i}" for i in range(80))
SIZES = [(1, 1), (1, 300), (40, 30), (256, 256), (1080, 1920)]


def random_detections(height: int, width: int, count: int = 8) -> Detections:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
    scores = np.sort(rng.uniform(0, 1, count))[::-1].astype(np.float32)
    boxes = (corners * [width, height, width, height]).astype(np.float32)
    return Detections(boxes, scores, rng.integers(0, 80, count).astype(np.int32), NAMES)


def contrast(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Contrast ratio of two sRGB colours given as BGR (WCAG 2.1)."""

    def luminance(color: NDArray[np.float64]) -> float:
        c = np.asarray(color) / 255
        return float(
            np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
            @ [0.0722, 0.7152, 0.2126]
        )

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("zoom", [1, 3])
def test_gives_a_new_picture_and_leaves_the_old(size: tuple[int, int], zoom: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image.flags.writeable = False
    before = image.copy()
    picture = draw(image, random_detections(*size), zoom=zoom)
    assert (picture.shape, picture.dtype) == ((size[0] * zoom, size[1] * zoom, 3), np.uint8)
    assert picture.flags.writeable
    assert not np.shares_memory(picture, image)
    np.testing.assert_array_equal(image, before)
    assert (draw(image, random_detections(*size), zoom=zoom) == picture).all(), "deterministic"


def test_nothing_found_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    nothing = random_detections(50, 60)[np.zeros(8, bool)]
    np.testing.assert_array_equal(draw(image, nothing), image)


def test_a_box_is_drawn_on_its_edges_in_its_colour() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    one = Detections(
        np.array([[50, 60, 150, 180]], np.float32),
        np.array([0.5], np.float32),
        np.array([3], np.int32),
        NAMES,
    )
    picture = draw(image, one, labels=False)
    color = np.array(color_of(3))
    for y, x in [(60, 100), (179, 100), (120, 50), (120, 149)]:
        np.testing.assert_allclose(picture[y, x], color, atol=30)  # antialiased
    inside = picture[65:175, 55:145]
    assert not inside.any()
    large = draw(image, one, labels=False, zoom=2)
    np.testing.assert_allclose(large[120, 200], color, atol=30)
    with_label = draw(image, one)
    assert (with_label != picture).any(axis=2)[40:60, 48:120].mean() > 0.3, "label above the box"


def test_dashes_leave_gaps_and_thin_lines_have_no_rim() -> None:
    red, style = (0, 0, 255), Style(line=2, text=8, pad=3)
    pictures = {}
    for kind in ("dashed", "thin", "plain"):
        mark = Mark((50, 60, 150, 180), "", red, dashed=kind == "dashed", thin=kind == "thin")
        pictures[kind] = np.full((200, 300, 3), 255, np.uint8)
        draw_marks(pictures[kind], [mark], style)
    upper = {kind: (picture[60, 50:150] == red).all(axis=1) for kind, picture in pictures.items()}
    assert upper["plain"].all() and 30 < upper["dashed"].sum() < 90
    darkest = {kind: picture[..., 2].min() for kind, picture in pictures.items()}
    assert darkest["plain"] < 50 and darkest["thin"] == 255  # of red as of white


@pytest.mark.parametrize("box", [(0, 0, 300, 200), (290, 190, 300, 200), (0, 0, 4, 4)])
def test_labels_stay_inside(box: tuple[int, int, int, int]) -> None:
    for place in _places(box, (120, 20), 1, 200, 300):
        assert (place >= 0).all()
        assert (place[2:] <= (300, 200)).all()
        np.testing.assert_array_equal(place[2:] - place[:2], (120, 20))


def test_labels_of_a_pair_do_not_cover_each_other() -> None:
    """Two boxes almost on top of one another, what this project is about."""
    first = _places((100, 100, 160, 200), (50, 16), 1, 400, 400)
    none = np.zeros((0, 4), np.int64)
    boxes = np.array([[104, 102, 165, 203]])
    taken = _best_place(first, none, boxes)
    second = _best_place(_places((104, 102, 165, 203), (50, 16), 1, 400, 400), taken[None], boxes)
    assert _overlap(second[None], taken[None])[0] == 0


def test_colours_are_stable_distinct_and_readable() -> None:
    colors = np.array([color_of(i) for i in range(PALETTE_SIZE)])
    assert color_of(PALETTE_SIZE + 7) == color_of(7)
    lab = cv2.cvtColor((colors / 255).astype(np.float32)[None], cv2.COLOR_BGR2Lab)[0]
    gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)]
    first_gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(lab[:20], 2)]
    assert min(gaps) > 10, "CIE76; below 2.3 nobody sees a difference"
    assert min(first_gaps) > 20
    assert min(contrast(c, np.zeros(3)) for c in colors) > 4.5, "black text, and boxes on black"


@pytest.mark.parametrize("size", SIZES)
def test_sizes_grow_with_the_picture(size: tuple[int, int]) -> None:
    style, larger = Style.for_size(*size), Style.for_size(size[0] * 4, size[1] * 4)
    assert 1 <= style.line <= larger.line
    assert 7 <= style.text <= larger.text


def test_small_pictures_are_enlarged_large_ones_are_not() -> None:
    sizes = [(256, 256), (64, 96), (720, 1280), (640, 640), (1, 1)]
    assert [zoom_for(*size) for size in sizes] == [3, 7, 1, 1, 8]


def test_sheets_have_a_tile_for_each_picture() -> None:
    white: Any = np.full((30, 50, 3), 255, np.uint8)
    for count, columns, rows in ((1, 1, 1), (3, 3, 1), (5, 4, 2)):
        sheet = make_sheet([Tile(white, (), "name", "note")] * count, 4)
        high, wide = rows * (HEIGHT + CAPTION + MARGIN), columns * (WIDTH + MARGIN)
        assert sheet.shape == (high + MARGIN, wide + MARGIN, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (3000, 2), (340, 420)])
def test_pictures_of_any_shape_fit_a_tile(size: tuple[int, int]) -> None:
    green: Any = np.full((*size, 3), (0, 255, 0), np.uint8)
    tile = make_sheet([Tile(green, (), "", "")], 1)[MARGIN:, MARGIN:][:HEIGHT, :WIDTH]
    shown = (tile == (0, 255, 0)).all(axis=2)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert len(rows) == HEIGHT or len(columns) == WIDTH  # as large as it can be
    assert shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize(
    "xyxy",
    [(10, 10, 20, 20), (5, 5, 5, 9), (-20, 5, 10, 9), (900, 5, 990, 9), (-1e9, -1e9, 1e9, 1e9)],
)
def test_every_mark_shows(xyxy: tuple[float, float, float, float]) -> None:
    grey: Any = np.full((40, 60, 3), 128, np.uint8)
    red = (60, 60, 245)
    plain = make_sheet([Tile(grey, (), "", "")], 1)
    marked = make_sheet([Tile(grey, (Mark(xyxy, "", red),), "", "")], 1)
    assert not (plain == red).all(axis=2).any()
    assert (marked == red).all(axis=2).sum() > 8


def test_long_names_are_cut_in_their_middle() -> None:
    white: Any = np.full((30, 50, 3), 255, np.uint8)
    long = make_sheet([Tile(white, (), "a/" * 200 + "end.png", "x" * 900)], 1)
    assert (long[:, -MARGIN:] == 250).all()  # nothing reaches into the margin


def test_wrong_arguments_are_refused() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(InputError, match="zoom is 0"):
        draw(image, random_detections(20, 20), zoom=0)
    with pytest.raises(InputError, match="grey"):
        draw(image[:, :, 0], random_detections(20, 20))

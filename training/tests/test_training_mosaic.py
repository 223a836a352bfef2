"""Mosaic and blend: what they are made of; where boxes end is in test_training_paint.py."""

import numpy as np
import pytest

from nmsfree.preprocess import PAD_BGR
from nmsfree_training.data.augment import MIN_VISIBLE, SHARE, Example, mixup, mosaic


def plain(height: int, width: int, value: int, name: str = "") -> Example:
    """One colour, with one box around all of it."""
    image = np.full((height, width, 3), value, np.uint8)
    box = np.array([[0, 0, width, height]], np.float32)
    return Example(image, box, np.array([value]), (name,), ((f"bad {name}", "cut"),))


def tiles(height: int = 100, width: int = 100) -> list[Example]:
    return [plain(height, width, value, f"{value}.png") for value in (10, 20, 30, 40)]


def test_the_four_meet_in_one_point() -> None:
    centres = set()
    for seed in range(40):
        made = mosaic(tiles(), (80, 120), np.random.default_rng(seed))
        assert made.image.shape == (80, 120, 3)
        rows, columns = np.nonzero(made.image[:, :, 0] == 40)
        y, x = int(rows.min()), int(columns.min())
        assert 20 <= y <= 60 and 30 <= x <= 90
        corner = made.image[y - 1 : y + 1, x - 1 : x + 1, 0]
        assert corner.tolist() == [[10, 20], [30, 40]]
        centres.add((y, x))
    assert len(centres) > 30


def test_what_stays_empty_has_the_mean_colour() -> None:
    """A column of pixels cannot cover its quarter."""
    made = mosaic(tiles(100, 4), (80, 120), np.random.default_rng(0))
    values = {tuple(pixel) for pixel in made.image.reshape(-1, 3).tolist()}
    assert values == {PAD_BGR} | {(v, v, v) for v in (10, 20, 30, 40)}


@pytest.mark.parametrize("shape", [(100, 4), (4, 100)])
def test_images_too_thin_for_their_quarter_touch_the_centre(shape: tuple[int, int]) -> None:
    for seed in range(20):
        made = mosaic(tiles(*shape), (80, 120), np.random.default_rng(seed))
        rows, columns = np.nonzero(made.image[:, :, 0] == 40)
        y, x = int(rows.min()), int(columns.min())
        assert made.image[y - 1 : y + 1, x - 1 : x + 1, 0].tolist() == [[10, 20], [30, 40]]


def test_quarters_show_any_part_of_their_image() -> None:
    """A ramp from left to right, wider than its quarter: its first column tells the place."""
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    example = Example(ramp, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    firsts = {
        int(mosaic([example] * 4, (100, 200), np.random.default_rng(seed)).image[0, 0, 0])
        for seed in range(30)
    }
    assert len(firsts) > 10


def test_images_of_the_canvas_shape_cover_it() -> None:
    for seed in range(20):
        made = mosaic(tiles(40, 60), (80, 120), np.random.default_rng(seed))
        assert set(np.unique(made.image)) == {10, 20, 30, 40}


def test_names_and_failures_of_all_are_kept() -> None:
    made = mosaic(tiles(), (64, 64), np.random.default_rng(0))
    assert made.names == ("10.png", "20.png", "30.png", "40.png")
    assert [file for file, _ in made.failed] == [f"bad {v}.png" for v in (10, 20, 30, 40)]
    both = mixup(plain(9, 9, 1, "a"), plain(9, 9, 2, "b"), np.random.default_rng(0))
    assert both.names == ("a", "b") and len(both.failed) == 2


def test_objects_of_which_too_little_is_left_are_dropped() -> None:
    """A quarter shows 6 to 100 % of an image that covers it; the box is the image."""
    for seed in range(40):
        made = mosaic(tiles(), (100, 100), np.random.default_rng(seed))
        for box, label in zip(made.boxes, made.labels.tolist(), strict=True):
            area = float(np.prod(box[2:] - box[:2]))
            assert area == (made.image[:, :, 0] == label).sum()
        for value in {10, 20, 30, 40} - set(made.labels.tolist()):
            # At its smallest the whole image has a quarter of the canvas.
            assert (made.image[:, :, 0] == value).sum() < MIN_VISIBLE * 100 * 100


@pytest.mark.parametrize("shape", [(1, 1), (1, 8000), (8000, 1), (3000, 2000)])
@pytest.mark.parametrize("canvas", [(256, 256), (2, 2), (2, 700)])
def test_any_size_goes_into_a_mosaic(shape: tuple[int, int], canvas: tuple[int, int]) -> None:
    made = mosaic([plain(*shape, 10)] * 4, canvas, np.random.default_rng(0))
    assert made.image.shape == (*canvas, 3)
    assert (made.boxes[:, 2:] <= np.array(canvas[::-1])).all()


def test_without_objects_there_are_no_boxes() -> None:
    empty = Example(
        np.zeros((50, 70, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    )
    for made in (
        mosaic([empty] * 4, (64, 64), np.random.default_rng(0)),
        mixup(empty, empty, np.random.default_rng(0)),
    ):
        assert made.boxes.shape == (0, 4) and made.boxes.dtype == np.float32
        assert made.labels.shape == (0,) and made.labels.dtype == np.int64


def test_a_blend_shows_both() -> None:
    shares = set()
    for seed in range(20):
        made = mixup(plain(20, 30, 200), plain(20, 30, 100), np.random.default_rng(seed))
        (value,) = np.unique(made.image)
        low, high = (100 + 100 * share for share in SHARE)
        assert low - 1 <= value <= high + 1
        shares.add(int(value))
        assert made.labels.tolist() == [200, 100]
    assert len(shares) > 5


def test_a_smaller_second_image_leaves_the_rest_alone() -> None:
    made = mixup(plain(20, 30, 200), plain(10, 12, 100), np.random.default_rng(0))
    blended = made.image != 200
    assert blended[:10, :12].all() and not blended[10:].any() and not blended[:, 12:].any()
    assert made.boxes.tolist() == [[0, 0, 30, 20], [0, 0, 12, 10]]

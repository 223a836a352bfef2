"""Augmentation: what it must keep, what it must not touch."""

import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nmsfree.preprocess import PAD_BGR
from nmsfree_training.config import TrainConfig, preset
from nmsfree_training.data.augment import (
    MIN_VISIBLE,
    SHARE,
    Example,
    finish,
    flip,
    jitter,
    mixup,
    mosaic,
    place,
    random_crop,
    resized_size,
    short_side_size,
)

NOTHING = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
DIGESTS = ["a173abb1414a0ff5", "a4ebd6369276956c", "f96a2d0537c68281"]


def augment(
    example: Example, config: TrainConfig, input_size: tuple[int, int], rng: np.random.Generator
) -> Example:
    """All that happens to an example without mosaic and mixup."""
    return finish(place(example, config, input_size, rng), config, rng)


def make_example(height: int = 90, width: int = 120, objects: int = 8, seed: int = 0) -> Example:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    corner = random.uniform(0, 0.6, (objects, 2)) * (width, height)
    size = random.uniform(8, 40, (objects, 2))
    far = np.minimum(corner + size, (width, height))
    boxes = np.hstack([corner, far]).astype(np.float32)
    return Example(image, boxes, random.integers(0, 5, objects))


def areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def test_flip_twice_is_identity() -> None:
    example = make_example()
    twice = flip(flip(example))
    np.testing.assert_array_equal(twice.image, example.image)
    np.testing.assert_allclose(twice.boxes, example.boxes, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_crop_keeps_boxes_inside_and_visible(seed: int) -> None:
    example = make_example(seed=seed)
    cropped = random_crop(example, (60, 70), np.random.default_rng(seed))
    assert cropped.image.shape == (60, 70, 3)
    assert len(cropped.boxes) == len(cropped.labels)
    assert (cropped.boxes[:, :2] >= 0).all()
    assert (cropped.boxes[:, 2:] <= (70, 60)).all()
    # Find the window by its pixels, and the boxes it should hold by hand.
    top, left = next(
        (y, x)
        for y in range(31)
        for x in range(51)
        if (example.image[y : y + 60, x : x + 70] == cropped.image).all()
    )
    shifted = example.boxes - np.array([left, top, left, top], np.float32)
    clipped = np.clip(shifted, 0, np.array([70, 60, 70, 60], np.float32))
    keep = areas(clipped) >= MIN_VISIBLE * areas(shifted)
    np.testing.assert_allclose(cropped.boxes, clipped[keep], atol=1e-4)
    np.testing.assert_array_equal(cropped.labels, example.labels[keep])


def test_crops_reach_every_corner_and_drop_objects() -> None:
    example = make_example()
    random = np.random.default_rng(0)
    crops = [random_crop(example, (60, 70), random) for _ in range(40)]
    assert min(len(c.boxes) for c in crops) < len(example.boxes)
    assert len({c.image.tobytes() for c in crops}) > 30


def test_crop_larger_than_the_image_pads_with_the_mean_colour() -> None:
    example = make_example(50, 40)
    cropped = random_crop(example, (60, 70), np.random.default_rng(0))
    np.testing.assert_array_equal(cropped.image[:50, :40], example.image)
    assert (cropped.image[50:] == PAD_BGR).all() and (cropped.image[:, 40:] == PAD_BGR).all()
    np.testing.assert_array_equal(cropped.boxes, example.boxes)


def test_jitter_changes_more_the_stronger_it_is() -> None:
    image = make_example().image
    before = image.copy()
    change = []
    for strength in (0.0, 0.05, 0.2, 0.6):
        made = [jitter(image, strength, np.random.default_rng(seed)) for seed in range(10)]
        assert all(one.dtype == np.uint8 and one.shape == image.shape for one in made)
        assert len({one.tobytes() for one in made}) == (10 if strength else 1)
        change.append(np.mean([np.abs(one.astype(int) - image).mean() for one in made]))
    assert change == sorted(change) and change[0] == 0 < change[1]
    np.testing.assert_array_equal(image, before)


def published_rule(height: int, width: int, s: int, limit: int) -> tuple[int, int]:
    """The rule of the published evaluation, in its own words."""
    small, large = min(height, width), max(height, width)
    if large / small * s > limit:
        s = round(limit * small / large)
    if width < height:
        return int(s * height / width), s
    return s, int(s * width / height)


@pytest.mark.parametrize("limit", [736, 900])
def test_short_side_rule(limit: int) -> None:
    assert short_side_size(480, 640, 512, 736) == (512, 682)
    assert short_side_size(640, 480, 512, 736) == (682, 512)
    assert short_side_size(427, 640, 512, 736) == (491, 735)  # the long side decides
    assert short_side_size(500, 500, 512, 736) == (512, 512)
    random = np.random.default_rng(0)
    for height, width in random.integers(60, 2000, (300, 2)).tolist():
        for s in (256, 512, 608):
            found = short_side_size(height, width, s, limit)
            assert found == published_rule(height, width, s, limit)
            assert found == resized_size(height, width, s, limit)
            # The short side is rounded first, so the long one may pass by half an aspect ratio.
            assert max(found) <= limit + max(height, width) / min(height, width) / 2


@pytest.mark.parametrize(("height", "width"), [(1, 8000), (8000, 1), (5, 8000), (1, 1), (1, 37)])
def test_extreme_shapes_stay_bounded(height: int, width: int) -> None:
    for name in ("fcos_rt_nano", "fcos_rt_r18_3x"):
        chosen = preset(name)
        box = np.array([[0, 0, width, height]], np.float32)
        example = Example(np.full((height, width, 3), 9, np.uint8), box, np.array([1]))
        for seed in range(4):
            made = augment(example, chosen.train, chosen.input_size, np.random.default_rng(seed))
            limit = max(*chosen.input_size, chosen.train.long_side * 9 // 8)
            assert min(made.image.shape[:2]) >= 1 and max(made.image.shape[:2]) <= limit


def test_scale_spreads_the_size_within_its_bounds() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    example = Example(image, np.array([[50, 50, 150, 150]], np.float32), np.array([0]))
    wide = replace(preset("fcos_rt_nano").train, crop=None, color_jitter=0.0, scale=(0.5, 2.0))
    sides = []
    for seed in range(60):
        made = augment(example, wide, (256, 256), np.random.default_rng(seed))
        assert max(made.image.shape[:2]) <= 256  # what grew past the input was cut to it
        sides += (made.boxes[:, 2] - made.boxes[:, 0]).tolist()
    assert 50 <= min(sides) < 60 and 170 < max(sides) <= 200
    off = replace(wide, scale=(1.0, 1.0))
    made = augment(example, off, (256, 256), np.random.default_rng(0))
    assert made.image.shape == image.shape and (made.boxes == example.boxes).all()


def sha(example: Example) -> str:
    parts = (example.image, example.boxes, example.labels)
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


def test_examples_of_the_bundled_recipe_are_what_they_were() -> None:
    """The bundled weights were trained on such pixels: integer arithmetic, equal on any machine."""
    chosen = preset("fcos_e2e_nano")
    made = [
        augment(
            make_example(256, 256, seed=seed),
            chosen.train,
            chosen.input_size,
            np.random.default_rng((0, 1, seed)),
        )
        for seed in range(3)
    ]
    assert [sha(example)[:16] for example in made] == DIGESTS


def test_draws_of_the_published_recipe_are_what_they_were() -> None:
    """Order of draws: short side, flip. Resampling is the machine's, so it is repeated here."""
    chosen, example = preset("fcos_rt_r18_3x"), make_example(200, 300)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        short = int(rng.choice(np.arange(256, 609, 32)))
        size = published_rule(200, 300, short, 900)
        method = cv2.INTER_AREA if size[0] < 200 else cv2.INTER_LINEAR
        image = cv2.resize(example.image, size[::-1], interpolation=method)
        boxes = example.boxes * np.array([size[1] / 300, size[0] / 200] * 2, np.float32)
        if rng.random() < 0.5:
            image = image[:, ::-1]
            boxes = boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (size[1], 0, size[1], 0)
        made = augment(example, chosen.train, chosen.input_size, np.random.default_rng(seed))
        np.testing.assert_array_equal(made.image, image)
        np.testing.assert_allclose(made.boxes, boxes, atol=1e-3)


@pytest.mark.parametrize("name", ["fcos_e2e_nano", "fcos_e2e_r18_3x"])
def test_recipes_are_deterministic_and_vary(name: str) -> None:
    chosen, example = preset(name), make_example(200, 300)
    made = [
        augment(example, chosen.train, chosen.input_size, np.random.default_rng(seed))
        for seed in (0, 0, 1, 2, 3, 4, 5)
    ]
    assert sha(made[0]) == sha(made[1])
    assert len({m.image.tobytes() for m in made}) >= 4
    for m in made:
        height, width = m.image.shape[:2]
        assert m.boxes.dtype == np.float32 and m.labels.dtype == np.int64
        assert (m.boxes[:, :2] >= -1e-3).all()
        assert (m.boxes[:, 2:] <= np.array([width, height]) + 1e-3).all()
        if name.endswith("nano"):
            assert (height, width) == (224, 224)
        else:
            assert min(height, width) in chosen.train.short_sides and max(height, width) <= 900


# Several images in one; where boxes end is in test_training_paint.py


def plain(height: int, width: int, value: int, name: str = "") -> Example:
    """One colour, with one box around all of it."""
    image = np.full((height, width, 3), value, np.uint8)
    box = np.array([[0, 0, width, height]], np.float32)
    return Example(image, box, np.array([value]), (name,), ((f"bad {name}", "cut"),))


def tiles(height: int = 100, width: int = 100) -> list[Example]:
    return [plain(height, width, value, f"{value}.png") for value in (10, 20, 30, 40)]


@pytest.mark.parametrize("shape", [(100, 100), (100, 4), (4, 100)])
def test_the_four_meet_in_one_point(shape: tuple[int, int]) -> None:
    """Also those too thin for their quarter."""
    centres = set()
    for seed in range(30):
        made = mosaic(tiles(*shape), (80, 120), np.random.default_rng(seed))
        assert made.image.shape == (80, 120, 3)
        rows, columns = np.nonzero(made.image[:, :, 0] == 40)
        y, x = int(rows.min()), int(columns.min())
        assert 20 <= y <= 60 and 30 <= x <= 90
        assert made.image[y - 1 : y + 1, x - 1 : x + 1, 0].tolist() == [[10, 20], [30, 40]]
        centres.add((y, x))
    assert len(centres) > 20


def test_what_stays_empty_has_the_mean_colour() -> None:
    """A column of pixels cannot cover its quarter."""
    made = mosaic(tiles(100, 4), (80, 120), np.random.default_rng(0))
    values = {tuple(pixel) for pixel in made.image.reshape(-1, 3).tolist()}
    assert values == {PAD_BGR} | {(v, v, v) for v in (10, 20, 30, 40)}


def test_quarters_show_any_part_of_their_image() -> None:
    """A ramp from left to right, wider than its quarter: its first column tells the place."""
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    example = Example(ramp, *NOTHING)
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


@pytest.mark.parametrize("shape", [(1, 1), (1, 8000), (8000, 1), (3000, 2000)])
@pytest.mark.parametrize("canvas", [(256, 256), (2, 2), (2, 700)])
def test_any_size_goes_into_a_mosaic(shape: tuple[int, int], canvas: tuple[int, int]) -> None:
    made = mosaic([plain(*shape, 10)] * 4, canvas, np.random.default_rng(0))
    assert made.image.shape == (*canvas, 3)
    assert (made.boxes[:, 2:] <= np.array(canvas[::-1])).all()


def test_without_objects_there_are_no_boxes() -> None:
    empty = Example(np.zeros((50, 70, 3), np.uint8), *NOTHING)
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

"""Boxes follow their pixels: rectangles of one colour are looked for where their boxes went."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset, Sample
from nmsfree_training.config import TrainConfig, preset
from nmsfree_training.data.augment import (
    MIN_VISIBLE,
    Example,
    flip,
    mixup,
    mosaic,
    place,
    random_crop,
    resize,
)
from nmsfree_training.data.examples import TrainingSet

# Corners of the colour cube, by label: no blend of two with black or the padding is near a third.
COLORS = np.array([[b, g, r] for b in (0, 255) for g in (0, 255) for r in (0, 255)][1:], np.uint8)
NEAR = 60  # a pixel has a colour if no channel is further away

NANO = preset("fcos_rt_nano").train
R18 = preset("fcos_rt_r18_3x").train


def paint(height: int, width: int, labels: list[int], seed: int) -> Example:
    """Rectangles in the colours of their labels, apart from each other, on black."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    boxes = []
    edges = np.linspace(0, width, len(labels) + 1).astype(int)  # a column for each
    for label, (left, right) in zip(labels, pairwise(edges), strict=True):
        x1 = int(random.integers(left + 4, left + 4 + (right - left) // 4))
        x2 = int(random.integers(right - 4 - (right - left) // 4, right - 4))
        y1 = int(random.integers(0, height // 3))
        y2 = int(random.integers(height // 2, height + 1))
        image[y1:y2, x1:x2] = COLORS[label]
        boxes.append((x1, y1, x2, y2))
    return Example(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))


def extent(image: NDArray[np.uint8], label: int) -> NDArray[np.float64] | None:
    """The box around all pixels of a label's colour."""
    distance = np.abs(image.astype(int) - COLORS[label]).max(axis=2)
    ys, xs = np.nonzero(distance < NEAR)
    if not len(ys):
        return None
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], float)


def area(box: NDArray[np.floating]) -> float:
    return float(np.prod(box[2:] - box[:2]))


def assert_boxes_fit(before: list[Example], after: Example, zoom: float = 1.0) -> None:
    """Every box lies on its colour, and every colour that is seen well enough has its box.

    Args:
        zoom: how much larger a source pixel may have become: edges blur with it.
    """
    tolerance = 1.01 + (zoom - 1) / 2
    assert len(after.boxes) == len(after.labels) == len(set(after.labels.tolist()))
    for box, label in zip(after.boxes, after.labels.tolist(), strict=True):
        seen = extent(after.image, label)
        assert seen is not None, f"nothing of colour {label} under its box"
        np.testing.assert_allclose(box, seen, atol=tolerance, err_msg=f"colour {label}")
    missing = {int(c) for e in before for c in e.labels} - set(after.labels.tolist())
    whole = {int(c): area(b) for e in before for b, c in zip(e.boxes, e.labels, strict=True)}
    for label in missing:
        seen = extent(after.image, label)
        assert seen is None or area(seen) < (MIN_VISIBLE + 0.1) * whole[label] * zoom**2


@pytest.mark.parametrize("seed", range(5))
def test_painted_boxes_fit_before_anything_is_done(seed: int) -> None:
    example = paint(200, 300, [0, 3, 5, 6], seed)
    assert len(example.boxes) == 4
    assert_boxes_fit([example], example)
    moved = example._replace(boxes=example.boxes + np.float32(3))
    with pytest.raises(AssertionError):  # the check sees three pixels
        assert_boxes_fit([example], moved)


OPERATIONS: dict[str, Callable[[Example, np.random.Generator], Example]] = {
    "flip": lambda e, _: flip(e),
    "shrink": lambda e, _: resize(e, 120, 200),
    "stretch": lambda e, _: resize(e, 390, 301),
    "crop": lambda e, rng: random_crop(e, (150, 180), rng),
    "crop larger": lambda e, rng: random_crop(e, (250, 180), rng),
    "nano": lambda e, rng: place(e, NANO, (256, 256), rng),
    "short sides": lambda e, rng: place(e, R18, (512, 736), rng),
    "scaled": lambda e, rng: place(e, replace(R18, scale=(0.4, 1.6)), (512, 736), rng),
    "scaled, cropped": lambda e, rng: place(e, replace(NANO, scale=(0.5, 2.0)), (256, 256), rng),
}


ZOOM = {"stretch": 1.95, "short sides": 608 / 200, "scaled": 900 / 300 * 1.6, "scaled, cropped": 2}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("seed", range(6))
def test_boxes_follow(name: str, seed: int) -> None:
    example = paint(200, 300, [0, 3, 5, 6], seed)
    before = example.image.copy(), example.boxes.copy()
    after = OPERATIONS[name](example, np.random.default_rng(seed))
    assert (example.image == before[0]).all() and (example.boxes == before[1]).all()
    assert_boxes_fit([example], after, ZOOM.get(name, 1.0))
    if "crop" not in name and "nano" not in name and "scaled" not in name:
        assert len(after.boxes) == 4


@pytest.mark.parametrize("seed", range(15))
def test_boxes_follow_into_a_mosaic(seed: int) -> None:
    kinds = {(200, 300): [0, 3], (300, 200): [1, 5], (90, 400): [6, 2], (256, 256): [4]}
    tiles = [paint(*size, labels, seed) for size, labels in kinds.items()]
    made = mosaic(tiles, (256, 320), np.random.default_rng(seed))
    assert made.image.shape == (256, 320, 3)
    assert (made.boxes >= 0).all() and (made.boxes[:, 2:] <= (320, 256)).all()
    assert_boxes_fit(tiles, made)


def test_a_mosaic_shows_objects_of_all_four() -> None:
    tiles = [paint(256, 256, [label], 0) for label in (0, 1, 3, 6)]
    shown = [
        set(mosaic(tiles, (256, 256), np.random.default_rng(seed)).labels.tolist())
        for seed in range(20)
    ]
    assert {0, 1, 3, 6} in shown and set().union(*shown) == {0, 1, 3, 6}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [(200, 300), (120, 150), (320, 260)])
def test_boxes_follow_into_a_blend(seed: int, size: tuple[int, int]) -> None:
    """The first image is painted in blue and green, the second in red: channels keep them apart."""
    blue, green, red = 3, 1, 0
    channel = {blue: 0, green: 1, red: 2}
    first, second = paint(200, 300, [blue, green], seed), paint(*size, [red], seed)
    before = first.image.copy()
    made = mixup(first, second, np.random.default_rng(seed))
    np.testing.assert_array_equal(first.image, before)  # what was given is left alone
    assert made.image.shape == first.image.shape
    np.testing.assert_array_equal(made.boxes[:2], first.boxes)
    np.testing.assert_array_equal(made.labels[:2], first.labels)
    for box, label in zip(made.boxes, made.labels.tolist(), strict=True):
        ys, xs = np.nonzero(made.image[:, :, channel[label]] > 90)
        seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(box, seen, atol=1.01)
    if size <= (200, 300):
        assert len(made.boxes) == 3


@pytest.fixture(scope="module")
def painted_set(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    """Painted pictures of many shapes, in files."""
    folder, samples = tmp_path_factory.mktemp("painted"), []
    sizes = [(200, 300), (300, 200), (128, 128), (500, 400), (90, 400), (256, 256)]
    for i, (height, width) in enumerate(sizes):
        made, path = paint(height, width, [i % 7, (i + 2) % 7], i), folder / f"{i}.png"
        cv2.imwrite(str(path), made.image)
        crowd = np.zeros(len(made.labels), bool)
        samples.append(Sample(i, path, width, height, made.boxes, made.labels, crowd))
    places = tuple(range(len(sizes))), folder / "none.json", folder
    return DetectionDataset("train", tuple(samples), tuple("abcdefg"), tuple(range(7)), *places)


# Preset, recipe, and pixels of blur at the edges: 128 × 128 pixels grow sevenfold in "r18".
RECIPES: dict[str, tuple[str, TrainConfig, int]] = {
    "nano": ("fcos_rt_nano", replace(NANO, mosaic=0.7, scale=(0.5, 1.5), flip=0.5), 2),
    "r18": ("fcos_rt_r18_3x", replace(R18, mosaic=0.7, scale=(0.5, 1.5)), 5),
    "blended": ("fcos_rt_nano", replace(NANO, mosaic=0.5, mixup=1.0, flip=0.5), 2),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_whole_recipes_keep_boxes_on_their_colours(
    painted_set: DetectionDataset, recipe: str
) -> None:
    """Images repeat in a mosaic, so colours are looked for under the boxes alone."""
    name, train, blur = RECIPES[recipe]
    train = replace(train, color_jitter=0.0)
    chosen = replace(preset(name, 7), train=train)
    faintest = 0.4 * 255 - 8 if train.mixup else 255 - NEAR  # of a channel the colour is made of
    checked = 0
    for epoch, index in product(range(6), range(len(painted_set))):
        made = TrainingSet(painted_set, chosen, seed=0, epoch=epoch)[index]
        height, width = made.image.shape[:2]
        assert (made.boxes >= -1e-3).all()
        assert (made.boxes[:, 2:] <= np.array([width, height]) + 1e-3).all()
        for box, label in zip(made.boxes, made.labels.tolist(), strict=True):
            x1, y1 = np.ceil(box[:2] + blur).astype(int)
            x2, y2 = np.maximum((box[2:] - blur).astype(int), (x1, y1))
            inside = made.image[y1:y2, x1:x2].reshape(-1, 3)
            assert (inside[:, COLORS[label] == 255] >= faintest).all()
            if not train.mixup:
                assert (inside[:, COLORS[label] == 0] <= NEAR).all()
            checked += len(inside) > 0
    assert checked > 60

"""Tiled detection: what lies on a seam is told once, and nothing gets lost."""

import functools
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime_helpers import Noise, refusing

from nmsfree import CallableBackend, Detections, Detector, InputError, ModelSpec, RawDetections
from nmsfree.tiles import Tiling

SIDE, LARGE = 256, 640  # of a tile and of the picture
SEAMS = {64: (224, 416), 112: (192, 320, 448)}  # where cores meet, both ways, by the overlap
refused = refusing(InputError)
Boxes = NDArray[np.float64]


@functools.cache
def picture_of_places() -> NDArray[np.uint8]:
    """A picture in which a pixel tells where it is."""
    y, x = np.mgrid[:LARGE, :LARGE]
    return np.stack([x % 256, x // 256 * 16 + y // 256, y % 256], axis=2).astype(np.uint8)


class Looker:
    """Answers with the objects that a tile shows, each a little off, and differently every time.

    An object of which less than a quarter shows is not seen, nor what is under 8 pixels there.
    """

    def __init__(self, spec: ModelSpec, seed: int, reduced: bool = True, jitter: float = 0.05):
        self.spec, self.reduced, self.jitter = spec, reduced, jitter
        self.objects: Boxes = np.zeros((0, 4))
        self.labels: NDArray[np.int64] = np.zeros(0, np.int64)
        self.rng = np.random.default_rng(seed)

    def __call__(self, images: NDArray[np.uint8]) -> RawDetections:
        answers = [self._look(image.astype(int)) for image in images]
        k = self.spec.top_k
        boxes, scores = np.zeros((len(images), k, 4)), np.zeros((len(images), k))
        labels = np.zeros((len(images), k))
        for i, (seen, sure, label) in enumerate(answers):
            order = np.argsort(-sure)
            n = len(order)
            boxes[i, :n], scores[i, :n], labels[i, :n] = seen[order], sure[order], label[order]
        counts = np.array([[len(seen)] for seen, _, _ in answers], np.int32)
        return RawDetections(
            counts, boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32)
        )

    def _look(self, image: NDArray[np.int64]) -> tuple[Boxes, Boxes, NDArray[np.int64]]:
        scale, corner = 1.0, np.zeros(2)
        if (image[0, 1] - image[0, 0]).tolist() == [1, 0, 0]:
            low, high = image[0, 0, ::2], image[0, 0, 1]
            corner = low + 256 * np.array([high // 16, high % 16])
        else:
            scale = SIDE / LARGE
        objects = (self.objects - np.tile(corner, 2)) * scale
        sides = objects[:, 2:] - objects[:, :2]
        centres = (objects[:, 2:] + objects[:, :2]) / 2
        off = np.maximum(self.jitter * sides, scale)
        centres = centres + self.rng.uniform(-1, 1, sides.shape) * off
        sides = sides * self.rng.uniform(1 - 2 * self.jitter, 1 + 2 * self.jitter, sides.shape)
        placed = np.clip(np.hstack([centres - sides / 2, centres + sides / 2]), 0, SIDE)
        visible = placed[:, 2:] - placed[:, :2]
        seen = visible.prod(axis=1) >= 0.25 * sides.prod(axis=1)
        if scale < 1:
            seen &= self.reduced & (sides.min(axis=1) >= 8)
        sure = self.rng.uniform(0.6, 0.95, len(placed))
        return placed[seen], sure[seen], self.labels[seen]


@pytest.fixture
def look(make_spec: Callable[..., ModelSpec]) -> Callable[..., Looker]:
    spec = make_spec(height=SIDE, width=SIDE, top_k=50, score_floor=0.05, threshold=0.3)
    return lambda *arguments, **fields: Looker(spec, *arguments, **fields)


def find(looker: Looker, **options: int) -> Detections:
    return Detector(CallableBackend(looker, looker.spec)).tiled(picture_of_places(), **options)


def iou(a: Boxes, b: Boxes) -> Boxes:
    """IoU of boxes [n, 4] and [m, 4]: [n, m]."""
    low, high = (
        np.maximum(a[:, None, :2], b[None, :, :2]),
        np.minimum(a[:, None, 2:], b[None, :, 2:]),
    )
    shared = np.maximum(high - low, 0).prod(axis=2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b))
    return shared / (area_a[:, None] + area_b[None] - shared)


def scene(rng: np.random.Generator, count: int, overlap: int = 64) -> Boxes:
    """Objects of 8 pixels to twice the overlap on seams and corners, apart from each other."""
    placed: Boxes = np.zeros((0, 4))
    while len(placed) < count:
        sides = np.exp(rng.uniform(np.log(8), np.log(2 * overlap), 2))
        centre = rng.choice(SEAMS[overlap], 2) + rng.uniform(-overlap, overlap, 2) * 0.75
        if rng.random() < 0.6:  # a seam, else a corner of four tiles
            centre[rng.integers(2)] = rng.uniform(80, LARGE - 80)
        box = np.hstack([centre - sides / 2, centre + sides / 2])[None]
        around = box + np.array([-12, -12, 12, 12])
        if box.min() >= 0 and box.max() <= LARGE and not (iou(around, placed) > 0).any():
            placed = np.vstack([placed, box])
    return placed


@pytest.mark.parametrize("overlap", [64, 112])
@pytest.mark.parametrize("reduced", [True, False])  # whether the whole picture helps
def test_a_thousand_objects_on_seams_are_told_once(
    look: Callable[..., Looker], reduced: bool, overlap: int
) -> None:
    rng = np.random.default_rng(0)
    looker = look(1, reduced)
    told = 0
    for _ in range(125):
        looker.objects = scene(rng, 4, overlap)
        looker.labels = rng.integers(0, 2, 4)
        found = find(looker, overlap=overlap)
        values = iou(looker.objects, found.xyxy.astype(np.float64))
        assert len(found) == 4, "twice or lost"
        assert (values.max(axis=1) >= 0.5).all(), "another place"
        assert (looker.labels == found.class_id[values.argmax(axis=1)]).all()
        told += len(found)
    assert told == 500


def test_close_objects_of_a_class_stay_two(look: Callable[..., Looker]) -> None:
    rng = np.random.default_rng(0)
    looker = look(2, jitter=0.02)
    looker.labels = np.zeros(2, np.int64)
    for _ in range(100):
        box = scene(rng, 1)
        move = (box[:, 2:] - box[:, :2]) * rng.uniform(0.15, 0.2, 2)
        looker.objects = np.clip(np.vstack([box, box + np.tile(move, 2)]), 0, LARGE)
        assert 0.4 < iou(looker.objects[:1], looker.objects[1:])[0, 0] < 0.75
        assert len(find(looker, overlap=64)) == 2


@pytest.mark.parametrize(("tile", "overlap"), [(256, None), (200, 100), (300, 40), (600, None)])
def test_tiles_cover_the_picture_and_cores_part_it(tile: int, overlap: int | None) -> None:
    height, width = 700, 1111
    tiles = Tiling(tile, overlap).lay(height, width, 0.75)
    views, cores, shared = tiles.views[:-1], tiles.cores[:-1], overlap or tile * 7 // 16
    assert tiles.views[-1].tolist() == [0, 0, width, height]
    assert (views[:, 2] - views[:, 0] == tile).all()
    assert (views[:, 3] - views[:, 1] == min(round(0.75 * tile), height)).all()
    rng = np.random.default_rng(0)
    shared = min(shared, round(0.75 * tile) // 2)
    for x, y in (rng.random((300, 2)) * [width - shared, height - shared]).tolist():
        box = np.array([x, y, x + shared, y + shared])
        assert ((views[:, :2] <= box[:2]) & (views[:, 2:] >= box[2:])).all(axis=1).any()
        assert ((cores[:, :2] <= [x, y]) & (cores[:, 2:] > [x, y])).all(axis=1).sum() == 1


def test_a_picture_of_one_tile_is_just_detected(
    look: Callable[..., Looker], noise: Noise, caplog: pytest.LogCaptureFixture
) -> None:
    looker = look(3)
    looker.objects, looker.labels = np.array([[10.0, 10, 80, 90]]), np.zeros(1, np.int64)
    detector = Detector(CallableBackend(looker, looker.spec))
    picture = picture_of_places()[:200, :240]
    assert len(detector.tiled(picture)) == len(detector.tiled(picture, tile=240)) == 1
    assert not caplog.messages
    assert len(detector.tiled(picture, tile=500)) == len(detector.tiled(picture, tile=500)) == 1
    assert caplog.messages == ["a picture is 240 pixels wide, a tile 500: it is not cut"]


def test_rows_are_filtered_after_they_are_joined(look: Callable[..., Looker]) -> None:
    looker = look(4)
    looker.objects = np.array([[100.0, 100, 140, 150], [300.0, 300, 380, 340], [500.0, 9, 530, 40]])
    looker.labels = np.array([0, 1, 2])
    everything = find(look_again(looker))
    assert sorted(everything.class_id) == [0, 1, 2] and not everything.truncated
    assert (np.diff(everything.confidence) <= 0).all()
    assert find(look_again(looker), classes=["green"]).class_id.tolist() == [1]
    best = find(look_again(looker), max_detections=1)
    assert best.confidence.tolist() == everything.confidence[:1].tolist()
    middle = float(everything.confidence[1])
    assert len(find(look_again(looker), threshold=middle)) == 1


def look_again(looker: Looker) -> Looker:
    """The same answers once more."""
    looker.rng = np.random.default_rng(9)
    return looker


def test_full_tiles_are_told(look: Callable[..., Looker]) -> None:
    looker = look(5, jitter=0.01)
    places = product(range(10, 170, 20), range(10, 150, 20))
    looker.objects = np.array([[x, y, x + 12.0, y + 12] for x, y in places])
    looker.labels = np.zeros(len(looker.objects), np.int64)
    looker.spec = replace(looker.spec, top_k=56)
    assert len(looker.objects) == 56 and find(looker).truncated
    assert not find(looker, max_detections=5).truncated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 8}, "tile is 8, expected 32 to"),
        ({"overlap": 2}, "overlap is 2, expected 8"),
        ({"overlap": 129}, "expected at most half a tile, 256"),
        ({"tile": 99.5}, "expected whole pixels"),
        ({"tile": "99"}, "expected whole pixels"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(
    look: Callable[..., Looker], options: dict[str, int], message: str
) -> None:
    assert message in refused(lambda: find(look(0), **options))
    assert "expected a tile with it" in refused(lambda: Tiling(overlap=20))

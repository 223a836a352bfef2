"""Pairs, duplicates, NMS and confusion against cases computed by hand and plain loops."""

from collections.abc import Sequence

import numpy as np
import pytest

from nmsfree.evaluation import boxes as boxes_module
from nmsfree.evaluation.boxes import (
    Boxes,
    best_first,
    iou_of,
    pairs_between,
    pairs_within,
    to_results,
)
from nmsfree.evaluation.curves import confusion_matrix
from nmsfree.evaluation.matching import duplicates, match, survivors
from nmsfree.nms import suppress

A = (10.0, 10.0, 100.0, 100.0)
B = (150.0, 120.0, 100.0, 100.0)
Row = tuple[Sequence[float], float, int, int]  # box xywh, score, label, image


def shifted(box: Sequence[float], pixels: float) -> tuple[float, ...]:
    """Moved to the right: of a box 100 wide, IoU (100 − pixels) / (100 + pixels)."""
    return (box[0] + pixels, *box[1:])


def table(*rows: Row, crowd: Sequence[bool] | None = None) -> Boxes:
    return Boxes(
        np.array([row[3] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.int64),
        np.array([row[0] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float64),
        np.array([False] * len(rows) if crowd is None else crowd, np.bool_),
    )


def found(*rows: Row) -> Boxes:
    """Detections as they must be given: sorted."""
    made = table(*rows)
    ordered = best_first(made)
    assert np.array_equal(ordered.score, made.score), "rows of a test are given in order"
    return made


def random_boxes(seed: int, count: int, images: int = 4, labels: int = 3) -> Boxes:
    rng = np.random.default_rng(seed)
    xywh = np.hstack([rng.uniform(0, 30, (count, 2)), rng.uniform(20, 50, (count, 2))])
    return best_first(
        Boxes(
            rng.integers(0, images, count),
            rng.integers(0, labels, count),
            xywh,
            rng.permutation(count) / count,
            np.zeros(count, np.bool_),
        )
    )


def test_iou_by_hand() -> None:
    plain, crowd = np.array([False]), np.array([True])
    a, b = np.array([A]), np.array([shifted(A, 50)])
    assert iou_of(a, a, plain) == pytest.approx(1)
    assert iou_of(a, b, plain) == pytest.approx(50 / 150)
    assert iou_of(a, b, crowd) == pytest.approx(0.5)
    assert iou_of(a, np.array([B]), plain) == 0
    assert iou_of(np.zeros((1, 4)), np.zeros((1, 4)), plain) == 0


def test_duplicates_by_hand() -> None:
    detections = found(
        (A, 0.9, 0, 0),
        (shifted(A, 17), 0.8, 0, 0),  # IoU 83 / 117 = 0.709 with the first
        (shifted(A, 18), 0.7, 0, 0),  # 82 / 118 = 0.695 with the first, 0.98 with the second
        (A, 0.6, 1, 0),  # another class
        (shifted(A, 40), 0.5, 0, 0),  # 0.43 with the first, 0.63 and 0.64 with the others
        (A, 0.4, 0, 1),  # another image
    )
    assert duplicates(detections).tolist() == [False, True, True, False, False, False]
    assert duplicates(detections, iou=0.99).tolist() == [False] * 6
    assert duplicates(detections.select([])).tolist() == []
    same = found(*[(A, score, 0, 0) for score in (0.9, 0.5, 0.5, 0.1)])
    assert duplicates(same).tolist() == [False, True, True, True], "only the worse one of a pair"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.3, 0.6])
def test_survivors_are_those_of_plain_nms(seed: int, iou: float) -> None:
    detections = random_boxes(seed, 200)
    corners = detections.xywh.copy()
    corners[:, 2:] += corners[:, :2]
    expected = np.zeros(len(detections), np.bool_)
    for image in range(4):
        own = np.flatnonzero(detections.image == image)
        kept = suppress(corners[own], detections.score[own], detections.label[own], iou)
        expected[own[kept]] = True
    assert 0.1 < expected.mean() < 0.9, "NMS has something to decide"
    assert np.array_equal(survivors(detections, iou), expected)


def test_pairs_do_not_depend_on_how_many_are_compared_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detections, objects = random_boxes(0, 150), random_boxes(1, 40)
    whole = pairs_between(detections, objects, 0.4, True), pairs_within(detections, 0.4)
    assert all(len(i) > 10 for i, _ in whole)
    for limit in (1, 7, 100):
        monkeypatch.setattr(boxes_module, "PAIRS_AT_ONCE", limit)
        parts = pairs_between(detections, objects, 0.4, True), pairs_within(detections, 0.4)
        for (i, j), (k, m) in zip(whole, parts, strict=True):
            assert np.array_equal(i, k)
            assert np.array_equal(j, m)


def test_iou_of_exactly_one_half_hits() -> None:
    truth = table(((0.0, 0.0, 100.0, 100.0), 1, 0, 0))
    half, less = (0.0, 0.0, 100.0, 50.0), (0.0, 0.0, 100.0, 49.9)
    assert match(found((half, 0.9, 0, 0)), truth).hit.tolist() == [True]
    assert match(found((less, 0.9, 0, 0)), truth).hit.tolist() == [False]


def test_confusion_by_hand() -> None:
    truth = table(
        (A, 1, 0, 0),  # found as class 0
        (B, 1, 0, 0),  # taken for class 1
        (A, 1, 1, 1),  # missed
        ((0.0, 0.0, 50.0, 50.0), 1, 1, 2),  # a crowd region
        crowd=[False, False, False, True],
    )
    detections = best_first(
        table(
            (shifted(A, 5), 0.9, 0, 0),
            (A, 0.8, 1, 0),  # its object is taken: false
            (B, 0.7, 1, 0),
            (B, 0.6, 0, 1),  # nothing there: false
            ((10.0, 10.0, 20.0, 20.0), 0.5, 0, 2),  # in the crowd, whatever its class
        )
    )
    assert confusion_matrix(detections, truth, 2).tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_confusion_counts_everything_once(seed: int) -> None:
    detections, truth = random_boxes(seed, 80), random_boxes(seed + 10, 30)
    matrix = confusion_matrix(detections, truth, 3)
    assert matrix[:3].sum(axis=1).tolist() == np.bincount(truth.label, minlength=3).tolist()
    columns = np.bincount(detections.label, minlength=3)
    assert matrix[:, :3].sum(axis=0).tolist() == columns.tolist()
    assert matrix[3, 3] == 0


def test_results_are_the_way_back() -> None:
    detections = found((A, 0.9, 1, 1), (B, 0.4, 0, 1))
    assert to_results(detections, [5, 8], [7, 40]) == [
        {"image_id": 8, "category_id": 40, "bbox": list(A), "score": 0.9},
        {"image_id": 8, "category_id": 7, "bbox": list(B), "score": 0.4},
    ]

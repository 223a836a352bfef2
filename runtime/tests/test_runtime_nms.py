"""Both ways to suppress keep the same boxes in the same order, bit for bit the same arithmetic."""

import numpy as np
import pytest
from numpy.typing import NDArray

from nmsfree import nms
from nmsfree.nms import greedy_nms, suppress

Drawn = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def draw(count: int, seed: int, classes: int = 5) -> Drawn:
    """Crowded boxes in few places, with ties: scores of two digits, some boxes twice."""
    random = np.random.default_rng(seed)
    corner = random.integers(0, 40, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + random.uniform(0, 60, (count, 2))], axis=1)
    boxes[count // 2 :: 7] = boxes[: len(boxes[count // 2 :: 7])]
    scores = random.uniform(0, 1, count).round(2)
    return boxes.astype(np.float32), scores.astype(np.float32), random.integers(0, classes, count)


@pytest.mark.parametrize("class_aware", [True, False])
@pytest.mark.parametrize("iou", [0.0, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("count", [0, 1, 2, 50, 700])
def test_the_matrix_keeps_what_the_loop_keeps(count: int, iou: float, class_aware: bool) -> None:
    boxes, scores, labels = draw(count, seed=count)
    expected = suppress(boxes, scores, labels, iou, class_aware)
    found = suppress(boxes, scores, labels, iou, class_aware, at_once=True)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype == np.int64
    if count == 700 and iou == 0.6:
        assert 0 < len(found) < count


def test_boxes_without_an_area_stay() -> None:
    boxes = np.array([[5, 5, 5, 9], [5, 5, 5, 9], [0, 0, 10, 10]], np.float32)
    scores = np.array([0.5, 0.9, 0.7], np.float32)
    labels = np.zeros(3, np.int64)
    assert suppress(boxes, scores, labels, 0.6, at_once=True).tolist() == [1, 2, 0]
    assert suppress(boxes, scores, labels, 0.6).tolist() == [1, 2, 0]


def test_many_boxes_of_a_class_go_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of their overlaps would take much memory and no less time."""
    sizes: list[int] = []

    def counted(
        boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float
    ) -> NDArray[np.int64]:
        sizes.append(len(boxes))
        return greedy_nms(boxes, scores, iou)

    monkeypatch.setattr(nms, "AT_ONCE", 20)
    monkeypatch.setattr(nms, "greedy_nms", counted)
    boxes, scores, labels = draw(45, seed=1, classes=2)
    labels[:] = np.arange(45) < 15
    found = suppress(boxes, scores, labels, 0.6, at_once=True)
    assert sizes == [30]
    np.testing.assert_array_equal(found, suppress(boxes, scores, labels, 0.6))

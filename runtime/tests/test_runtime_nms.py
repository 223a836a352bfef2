"""Greedy NMS of one image, and whether what an NMS left still overlaps."""

import numpy as np
import pytest

from nmsfree.nms import overlapping, suppress

# The second overlaps the first by 3/5 and the third by 1/3; the fourth has no area.
BOXES = np.array([[0, 0, 8, 8], [2, 0, 10, 8], [6, 0, 14, 8], [5, 5, 5, 9]], np.float32)
SCORES = np.array([0.9, 0.8, 0.7, 0.95], np.float32)
ONE, OTHERS = np.zeros(4, np.int64), np.array([0, 1, 0, 0])


@pytest.mark.parametrize(
    ("iou", "labels", "class_aware", "kept"),
    [
        (0.59, ONE, True, [3, 0, 2]),
        (0.61, ONE, True, [3, 0, 1, 2]),
        (0.3, ONE, True, [3, 0, 2]),  # what is removed removes nothing
        (0.59, OTHERS, True, [3, 0, 1, 2]),
        (0.59, OTHERS, False, [3, 0, 2]),
    ],
)
def test_what_stays_is_best_first(
    iou: float, labels: np.ndarray, class_aware: bool, kept: list[int]
) -> None:
    found = suppress(BOXES, SCORES, labels, iou, class_aware)
    assert found.tolist() == kept and found.dtype == np.int64
    assert suppress(BOXES[:0], SCORES[:0], labels[:0], iou, class_aware).shape == (0,)


def test_the_order_of_corners_does_not_matter() -> None:
    """As for ONNX's operator."""
    for order in ([2, 1, 0, 3], [2, 3, 0, 1]):
        boxes = BOXES.copy()
        boxes[1:3] = boxes[1:3, order]
        assert suppress(boxes, SCORES, ONE, 0.59).tolist() == [3, 0, 2]


def test_rows_that_overlap_are_seen() -> None:
    assert overlapping(BOXES, ONE, 0.59)
    assert not overlapping(BOXES, ONE, 0.61)
    assert not overlapping(BOXES, OTHERS, 0.59) and overlapping(BOXES, OTHERS, 0.59, False)
    assert not overlapping(BOXES[:1], ONE, 0.59)  # labels may be of more rows

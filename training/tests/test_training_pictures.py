"""Pictures of predictions beside the truth, and the verdicts they show."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from nmsfree.detections import Detections
from nmsfree.draw import color_of
from nmsfree.errors import InputError
from nmsfree_training.monitor.pictures import MARGIN, draw_predictions, judge

Rows = Sequence[Sequence[float]]

NAMES = ("cat", "dog")
ONE = [[100, 100, 300, 300]]
NO_BOXES = np.zeros((0, 4), dtype=np.float32)
NO_LABELS = np.zeros(0, dtype=np.int64)
RED = (70, 70, 255)  # of the strokes, BGR


def boxes_of(rows: Rows) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def found_of(rows: Rows, labels: list[int], names: tuple[str, ...] = NAMES) -> Detections:
    scores = np.linspace(0.9, 0.5, len(rows), dtype=np.float32)
    return Detections(boxes_of(rows), scores, np.array(labels, dtype=np.int32), names)


def image_of(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def panels(
    found: Detections,
    truth: Rows,
    labels: list[int],
    size: tuple[int, int] = (640, 640),
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Left and right panel without the strips above."""
    picture = draw_predictions(
        image_of(*size), found, boxes_of(truth), np.array(labels, dtype=np.int64), NAMES
    )
    width = (picture.shape[1] - MARGIN) // 2
    body = picture[picture.shape[0] - size[0] :]
    return body[:, :width], body[:, width + MARGIN :]


def has(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> bool:
    return bool((picture == color).all(axis=2).any())


# Verdicts


def test_best_prediction_is_right_and_the_next_a_duplicate() -> None:
    found = boxes_of([[100, 100, 300, 300], [105, 100, 300, 300], [400, 400, 500, 500]])
    verdict = judge(found, np.array([0, 0, 0]), boxes_of(ONE), np.array([0]))
    assert verdict.verdicts == ("right", "duplicate", "wrong")
    assert not verdict.missed.any()


def test_other_class_is_wrong_and_the_object_missed() -> None:
    verdict = judge(boxes_of(ONE), np.array([1]), boxes_of(ONE), np.array([0]))
    assert verdict.verdicts == ("wrong",) and verdict.missed.tolist() == [True]


def test_two_objects_of_one_class_take_one_prediction_each() -> None:
    truth = boxes_of([[0, 0, 100, 100], [20, 0, 120, 100]])
    verdict = judge(truth[[1, 1, 1]], np.array([0, 0, 0]), truth, np.array([0, 0]))
    assert verdict.verdicts == ("right", "right", "duplicate")
    assert not verdict.missed.any()


@pytest.mark.parametrize(("right", "expected"), [(150.5, "right"), (149.5, "wrong")])
def test_half_an_overlap_is_enough(right: float, expected: str) -> None:
    verdict = judge(
        boxes_of([[100, 0, right, 10]]), np.array([0]), boxes_of([[100, 0, 200, 10]]), np.array([0])
    )
    assert verdict.verdicts == (expected,)


def test_nothing_found_and_nothing_there() -> None:
    nothing = judge(NO_BOXES, NO_LABELS, boxes_of(ONE), np.array([0]))
    assert nothing.verdicts == () and nothing.missed.tolist() == [True]
    assert judge(boxes_of(ONE), np.array([0]), NO_BOXES, NO_LABELS).verdicts == ("wrong",)
    assert judge(NO_BOXES, NO_LABELS, NO_BOXES, NO_LABELS).count("right") == 0


# Pictures


def test_right_prediction_has_its_class_colour_and_no_stroke() -> None:
    left, right = panels(found_of(ONE, [1]), ONE, [1])
    assert has(left, (255, 255, 255)) and not has(left, color_of(1))
    assert has(right, color_of(1)) and not has(right, RED)
    assert not has(right, (255, 255, 255))  # nothing was missed


def test_missed_object_is_dashed() -> None:
    _, right = panels(found_of([], []), ONE, [0])
    edge = (right[100, 100:300] == 255).all(axis=1)
    assert 0.2 < edge.mean() < 0.8


def test_duplicate_is_crossed_and_error_struck_through_once() -> None:
    middle_right = (slice(240, 260), slice(240, 260))  # on the falling diagonal only
    below_left = (slice(240, 260), slice(140, 160))  # on the rising one only
    again = found_of(ONE * 2, [0, 0])
    _, duplicate = panels(again, ONE, [0])
    assert has(duplicate[middle_right], RED) and has(duplicate[below_left], RED)
    _, wrong = panels(found_of(ONE, [1]), ONE, [0])
    assert has(wrong[below_left], RED) and not has(wrong[middle_right], RED)


def test_classes_in_another_order_keep_the_dataset_colour() -> None:
    _, right = panels(found_of(ONE, [0], ("dog", "cat")), ONE, [1])
    assert has(right, color_of(1)) and not has(right, RED)


@pytest.mark.parametrize("classes", [2, 80, 81, 170])
def test_verdict_leaves_the_colour_of_the_class(classes: int) -> None:
    names, label = tuple(f"class {i}" for i in range(classes)), classes - 1

    def painted(boxes: Rows, truth: int) -> int:
        """Pixels of the colour of `label`: mostly the ground of its labels."""
        found = found_of(boxes, [label] * len(boxes), names)
        picture = draw_predictions(
            image_of(640, 640), found, boxes_of(ONE), np.array([truth]), names
        )
        return int((picture == color_of(label)).all(axis=2).sum())

    right = painted(ONE, label)
    assert right > 500
    assert painted(ONE, 0) > right  # wrong: its text is longer
    assert painted([*ONE, [140, 100, 340, 300]], label) > 1.9 * right  # a duplicate


def test_unknown_class_is_an_error() -> None:
    with pytest.raises(InputError, match="'bird' was detected, expected one of the dataset's: cat"):
        panels(found_of(ONE, [0], ("bird",)), ONE, [0])


@pytest.mark.parametrize("size", [(64, 48), (480, 640), (3000, 2000), (640, 30), (20, 2000)])
def test_any_size_is_shown_at_a_readable_one(size: tuple[int, int]) -> None:
    image, (height, width) = image_of(*size), size
    before = image.copy()
    truth = boxes_of([[0, 0, width / 2, height / 2]])
    picture = draw_predictions(image, found_of([], []), truth, np.array([0]), NAMES)
    panel = (picture.shape[1] - MARGIN) // 2
    assert 400 <= panel <= 1280 and picture.shape[0] <= 1280 + 80
    assert np.array_equal(image, before)


def test_boxes_follow_the_new_size() -> None:
    """Drawn on a small picture and on the same twice as large: the same but for the pixels."""
    small, large = (
        draw_predictions(
            image_of(320 * k, 320 * k),
            found_of([[50 * k, 50 * k, 150 * k, 150 * k]], [0]),
            boxes_of([[50 * k, 50 * k, 150 * k, 150 * k]]),
            np.array([0]),
            NAMES,
        )
        for k in (1, 2)
    )
    assert np.array_equal(small, large)

"""Pictures of batches and of predictions beside the truth, and the verdicts they show."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nmsfree.datasets.dataset import UNKNOWN_SIZE
from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.detections import Detections
from nmsfree.drawing import color_of
from nmsfree.errors import DataError, InputError
from nmsfree_training.config import preset
from nmsfree_training.data.augment import Example
from nmsfree_training.data.batch import pack, unpack
from nmsfree_training.data.examples import TrainingSet
from nmsfree_training.data.loader import EpochLoader, epoch_order
from nmsfree_training.data.pictures import (
    ALARM,
    MARGIN,
    draw_predictions,
    judge,
    named_views,
    origin,
    views,
    write_preview,
)

Rows = Sequence[Sequence[float]]

NANO = preset("fcos_e2e_nano", 10)
NANO = replace(NANO, train=replace(NANO.train, batch_size=4, mosaic=0.5, mixup=0.5))
NAMES = ("cat", "dog")
ONE = [[100, 100, 300, 300]]


def boxes_of(rows: Rows) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def found_of(rows: Rows, labels: list[int], names: tuple[str, ...] = NAMES) -> Detections:
    scores = np.linspace(0.9, 0.5, len(rows), dtype=np.float32)
    return Detections(boxes_of(rows), scores, np.array(labels, dtype=np.int32), names)


def image_of(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def panels(
    found: Detections, truth: Rows, labels: list[int], size: tuple[int, int] = (640, 640)
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


TWO = [[0, 0, 100, 100], [20, 0, 120, 100]]
HALF = [[100, 0, 200, 10]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "labels", "truth", "verdicts", "missed"),
    [
        ([*ONE, [105, 100, 300, 300], [400, 400, 500, 500]], [0] * 3, ONE, "right dup wrong", [0]),
        (ONE, [1], ONE, "wrong", [1]),  # of another class
        ([TWO[1]] * 3, [0] * 3, TWO, "right right dup", [0, 0]),
        ([[100, 0, 150.5, 10]], [0], HALF, "right", [0]),
        ([[100, 0, 149.5, 10]], [0], HALF, "wrong", [1]),
        ([], [], ONE, "", [1]),
        (ONE, [0], [], "wrong", []),
        ([], [], [], "", []),
    ],
)
def test_verdicts(
    found: Rows, labels: list[int], truth: Rows, verdicts: str, missed: list[int]
) -> None:
    own, theirs = np.array(labels, np.int64), np.zeros(len(truth), np.int64)
    told, lost = judge(boxes_of(found), own, boxes_of(truth), theirs)
    assert told == verdicts.replace("dup", "duplicate").split() and lost.tolist() == missed


# Pictures


def test_right_prediction_has_its_class_colour_and_no_stroke() -> None:
    left, right = panels(found_of(ONE, [1]), ONE, [1])
    assert has(left, (255, 255, 255)) and not has(left, color_of(1))
    assert has(right, color_of(1)) and not has(right, ALARM)
    assert not has(right, (255, 255, 255))  # nothing was missed


def test_a_missed_object_is_white_and_what_is_not_right_is_red() -> None:
    _, missed = panels(found_of([], []), ONE, [0])
    assert has(missed, (255, 255, 255)) and not has(missed, ALARM)
    edge = (missed[100:300, 100] == 255).all(axis=1)
    assert 0.2 < edge.mean() < 0.8  # dashed
    _, duplicate = panels(found_of([*ONE, [140, 100, 340, 300]], [0, 0]), ONE, [0])
    assert has(duplicate, color_of(0)) and has(duplicate, ALARM)
    _, wrong = panels(found_of(ONE, [1]), ONE, [0])
    assert has(wrong, ALARM) and not has(wrong, color_of(1)) and has(wrong, (255, 255, 255))


def test_classes_in_another_order_keep_the_dataset_colour() -> None:
    _, right = panels(found_of(ONE, [0], ("dog", "cat")), ONE, [1])
    assert has(right, color_of(1)) and not has(right, ALARM)


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


# Batches


def test_views_are_the_examples_again(train_set: DetectionDataset) -> None:
    """Normalising and back loses nothing."""
    examples = TrainingSet(train_set, NANO, 7, 2)
    order = epoch_order(12, 7, 2).tolist()
    shown = [v for b in EpochLoader(train_set, NANO, 7, 2, 0) for v in views(b)]
    assert len(shown) == 12
    for index, view in zip(order, shown, strict=True):
        np.testing.assert_array_equal(view.picture, examples[index].image)
        np.testing.assert_array_equal(view.boxes, examples[index].boxes)
        np.testing.assert_array_equal(view.labels, examples[index].labels)
        assert not view.padding.any()


def test_padding_and_tiny_objects_are_told() -> None:
    small, large = np.full((20, 30, 3), 50, np.uint8), np.full((40, 35, 3), 60, np.uint8)
    boxes = np.array([[1, 2, 15, 18], [3, 3, 10.5, 18]], np.float32)
    examples = [Example(small, boxes, np.array([4, 5]))]
    examples.append(Example(large, boxes[:0], np.zeros(0, np.int64)))
    first, second = views(unpack(pack(examples)))
    assert first.picture.shape == second.picture.shape == (40, 35, 3)
    assert (first.picture[:20, :30] == 50).all() and (second.picture == 60).all()
    assert not first.padding[:20, :30].any() and first.padding.sum() == 40 * 35 - 20 * 30
    assert first.valid.tolist() == [True, False] and first.labels.tolist() == [4, 5]
    assert second.boxes.shape == (0, 4)


def test_an_image_of_unknown_size_is_replaced(train_set: DetectionDataset, tmp_path: Path) -> None:
    """As the readers of YOLO and VOC hand over what they cannot read."""
    (tmp_path / "empty.jpg").write_bytes(b"")
    width, height = UNKNOWN_SIZE
    bad = replace(train_set.samples[0], path=tmp_path / "empty.jpg", width=width, height=height)
    data = replace(train_set, samples=(bad, *train_set.samples[1:]))
    batches = list(EpochLoader(data, NANO, 7, 0, 0))
    failed = {failure for batch in batches for failure in batch.failed}
    assert failed == {(str(bad.path), "empty file, expected an image")}
    assert sum(len(batch.images) for batch in batches) == 12


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(("count", "rows"), [(6, 2), (2, 1)])
def test_a_sheet_is_written(
    train_set: DetectionDataset, tmp_path: Path, suffix: str, count: int, rows: int
) -> None:
    path = tmp_path / "new" / f"sheet{suffix}"
    write_preview(train_set, NANO, 0, path, count=count)
    sheet = cv2.imread(str(path))
    assert sheet is not None and sheet.std() > 20
    assert sheet.shape[1] // 420 == min(4, count) and sheet.shape[0] // 390 == rows
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_captions_tell_the_files_and_the_mix(train_set: DetectionDataset) -> None:
    order = epoch_order(12, 7, 0).tolist()
    origins = [origin for _, origin in named_views(train_set, NANO, 7, 0)]
    mixes = {words.rpartition(", ")[2] for words in origins if "," in words}
    assert mixes >= {"mosaic", "mixup"}
    assert any("," not in words for words in origins)
    for index, words in zip(order, origins, strict=True):
        assert words.split(" + ")[0] == train_set.samples[index].path.name


def test_long_file_names_keep_their_ends() -> None:
    words = origin((f"some/folder/a long {'x' * 60} name ß 7.jpg", "b.jpg"))
    assert words.startswith("a long xxx") and words.endswith("name ? 7.jpg + 1, mixup")


def test_what_cannot_be_drawn_is_refused(train_set: DetectionDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected .png or .jpg"):
        write_preview(train_set, NANO, 0, tmp_path / "sheet.pdf")
    with pytest.raises(DataError, match="no images"):
        write_preview(replace(train_set, samples=()), NANO, 0, tmp_path / "a.png")


def test_replaced_images_are_warned_of(
    train_set: DetectionDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = replace(train_set.samples[0], path=tmp_path / "gone.png")
    data = replace(train_set, samples=(gone, *train_set.samples[1:]))
    with caplog.at_level(logging.WARNING):
        write_preview(data, NANO, 0, tmp_path / "a.png")
    assert "gone.png" in caplog.text

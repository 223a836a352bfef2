"""The preview shows the pixels and boxes of real batches, and tells padding and tiny objects."""

import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from nmsfree.datasets.dataset import UNKNOWN_SIZE
from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import DataError, InputError
from nmsfree_training.config import Preset, preset
from nmsfree_training.data.augment import Example
from nmsfree_training.data.batch import collate
from nmsfree_training.data.examples import TrainingSet
from nmsfree_training.data.loader import epoch_loader, epoch_order
from nmsfree_training.data.preview import GAP, STRIP, named_views, origin, views, write_preview


@pytest.fixture
def chosen() -> Preset:
    nano = preset("fcos_e2e_nano", 10)
    return replace(nano, train=replace(nano.train, batch_size=4, mosaic=0.5, mixup=0.5))


def test_views_are_the_examples_again(train_set: DetectionDataset, chosen: Preset) -> None:
    """Normalising and back loses nothing."""
    examples = TrainingSet(train_set, chosen, 7, 2)
    order = epoch_order(12, 7, 2).tolist()
    shown = [v for b in epoch_loader(train_set, chosen, 7, 2, 0) for v in views(b)]
    assert len(shown) == 12
    for index, view in zip(order, shown, strict=True):
        np.testing.assert_array_equal(view.picture, examples[index].image)
        np.testing.assert_array_equal(view.boxes, examples[index].boxes)
        np.testing.assert_array_equal(view.labels, examples[index].labels)
        assert not view.padding.any()


def test_padding_and_tiny_objects_are_told() -> None:
    small, large = np.full((20, 30, 3), 50, np.uint8), np.full((40, 35, 3), 60, np.uint8)
    boxes = np.array([[1, 2, 15, 18], [3, 3, 10.5, 18]], np.float32)
    batch = collate(
        [
            Example(small, boxes, np.array([4, 5])),
            Example(large, boxes[:0], np.zeros(0, np.int64)),
        ]
    )
    first, second = views(batch)
    assert first.picture.shape == second.picture.shape == (40, 35, 3)
    assert (first.picture[:20, :30] == 50).all() and (second.picture == 60).all()
    assert not first.padding[:20, :30].any() and first.padding.sum() == 40 * 35 - 20 * 30
    assert first.valid.tolist() == [True, False] and first.labels.tolist() == [4, 5]
    assert second.boxes.shape == (0, 4)


def test_an_image_of_unknown_size_is_replaced(
    train_set: DetectionDataset, chosen: Preset, tmp_path: Path
) -> None:
    """As the readers of YOLO and VOC hand over what they cannot read."""
    (tmp_path / "empty.jpg").write_bytes(b"")
    width, height = UNKNOWN_SIZE
    bad = replace(train_set.samples[0], path=tmp_path / "empty.jpg", width=width, height=height)
    data = replace(train_set, samples=(bad, *train_set.samples[1:]))
    batches = list(epoch_loader(data, chosen, 7, 0, 0))
    failed = {failure for batch in batches for failure in batch.failed}
    assert failed == {(str(bad.path), "empty file, expected an image")}
    assert sum(len(batch.images) for batch in batches) == 12


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_sheet_is_written(
    train_set: DetectionDataset, chosen: Preset, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / "new" / f"sheet{suffix}"
    write_preview(train_set, chosen, 0, path, count=6)
    sheet = cv2.imread(str(path))
    assert sheet is not None
    # Six tiles of 224 × 224, enlarged twice: four columns, two rows.
    assert sheet.shape[1] > 4 * 448 and 2 * 448 < sheet.shape[0] < 3 * 448
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_sheet_shows_the_pixels(
    train_set: DetectionDataset, chosen: Preset, tmp_path: Path
) -> None:
    """Without objects nothing is drawn over an image: it is found in the sheet, enlarged twice."""
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    samples = tuple(
        replace(s, boxes=none[0], labels=none[1], iscrowd=none[2]) for s in train_set.samples
    )
    data = replace(train_set, samples=samples)
    write_preview(data, chosen, 0, tmp_path / "a.png", count=1)
    example = TrainingSet(data, chosen, 0, 0)[int(epoch_order(12, 0, 0)[0])]
    enlarged = example.image.repeat(2, axis=0).repeat(2, axis=1)
    sheet = cv2.imread(str(tmp_path / "a.png"))
    assert sheet is not None
    top, left = STRIP + GAP, GAP
    height, width = enlarged.shape[:2]
    np.testing.assert_array_equal(sheet[top : top + height, left : left + width], enlarged)


def test_captions_tell_the_files_and_the_mix(train_set: DetectionDataset, chosen: Preset) -> None:
    order = epoch_order(12, 7, 0).tolist()
    origins = [origin for _, origin in named_views(train_set, chosen, 7, 0)]
    mixes = {words.rpartition(", ")[2] for words in origins if "," in words}
    assert mixes >= {"mosaic", "mixup"}
    assert any("," not in words for words in origins)
    for index, words in zip(order, origins, strict=True):
        assert words.split(" + ")[0] == train_set.samples[index].path.name


def test_long_file_names_keep_their_ends() -> None:
    words = origin((f"some/folder/a long {'x' * 60} name ß 7.jpg", "b.jpg"))
    assert words.startswith("a long xxx") and words.endswith("name ? 7.jpg + 1, mixup")


def test_all_images_are_shown_where_there_are_fewer(
    train_set: DetectionDataset, tmp_path: Path
) -> None:
    large = preset("fcos_e2e_r18_3x", 10)
    data = replace(train_set, samples=train_set.samples[:2])
    write_preview(data, large, 0, tmp_path / "a.png", count=16, epoch=3)
    sheet = cv2.imread(str(tmp_path / "a.png"))
    assert sheet is not None
    assert 2 * 480 <= sheet.shape[1] < 3 * 480  # reduced to the side of a tile


def test_what_cannot_be_drawn_is_refused(
    train_set: DetectionDataset, chosen: Preset, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"expected .png or .jpg"):
        write_preview(train_set, chosen, 0, tmp_path / "sheet.pdf")
    with pytest.raises(DataError, match="no images"):
        write_preview(replace(train_set, samples=()), chosen, 0, tmp_path / "a.png")


def test_replaced_images_are_warned_of(
    train_set: DetectionDataset, chosen: Preset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = replace(train_set.samples[0], path=tmp_path / "gone.png")
    data = replace(train_set, samples=(gone, *train_set.samples[1:]))
    with caplog.at_level(logging.WARNING):
        write_preview(data, chosen, 0, tmp_path / "a.png")
    assert "gone.png" in caplog.text

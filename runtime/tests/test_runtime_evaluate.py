"""What metrics are made of and refuse; their numbers are held against pycocotools elsewhere."""

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from runtime_helpers import A, B, Make, result

from nmsfree.backends import CallableBackend, RawDetections
from nmsfree.datasets.digits.scenes import CLASS_NAMES, write_digits
from nmsfree.datasets.formats.coco import DetectionDataset, load_coco
from nmsfree.detector import Detector
from nmsfree.errors import DataError, InputError
from nmsfree.evaluation.evaluate import (
    category_ids_of,
    coco_metrics,
    count_overlapping,
    evaluate,
    predict,
)
from nmsfree.images import read_image
from nmsfree.spec import ModelSpec, NmsSpec


def test_images_whose_rows_overlap_are_counted() -> None:
    """In any order; the shifted box overlaps A by 90 / 110."""
    shifted = [20.0, 10.0, 100.0, 100.0]
    results = [
        *(result(A, 0.5, 7, 0), result(B, 0.9, 7, 0), result(shifted, 0.7, 7, 0)),
        *(result(A, 0.9, 7, 1), result(shifted, 0.7, 40, 1)),  # of two classes
        *(result(A, 0.9, 7, 2), result(shifted, 0.8, 7, 3)),  # in two images
    ]
    counts = {
        nms: count_overlapping(results, nms)
        for nms in (NmsSpec(0.8), NmsSpec(0.82), NmsSpec(0.8, class_aware=False))
    }
    assert list(counts.values()) == [1, 0, 2]
    assert count_overlapping([], NmsSpec()) == 0


def test_shortened_dataset_counts_its_images_only(make_dataset: Make) -> None:
    dataset, given = make_dataset({"bbox": A}, {"bbox": B, "image_id": 1}, images=2), result(A, 0.9)
    assert coco_metrics(dataset, [given]).ar100 == pytest.approx(0.5)
    assert given == result(A, 0.9), "left as it is"
    shortened = dataclasses.replace(dataset, samples=dataset.samples[:1])
    for results in ([result(A, 0.9)], [result(A, 0.9), result(A, 0.8, image=1)]):
        assert coco_metrics(shortened, results).ap == pytest.approx(1)


def test_what_cannot_be_scored_is_refused(make_dataset: Make) -> None:
    with pytest.raises(DataError, match="no objects to find"):
        coco_metrics(make_dataset({"bbox": A, "iscrowd": 1}), [result(A, 0.9)])
    dataset = make_dataset({"bbox": A})
    with pytest.raises(DataError, match="a result names image 3, which"):
        coco_metrics(dataset, [result(A, 0.9, image=3)])
    for value in (float("nan"), float("inf"), -float("inf")):
        for broken in (
            result(A, value),
            result([value, *A[1:]], 0.9),
            result([*A[:3], value], 0.9),
        ):
            message = f"a result of image 0 has .*{value}.* expected finite"
            with pytest.raises(DataError, match=message):
                coco_metrics(dataset, [broken])


def detector_of(run: Any, names: tuple[str, ...]) -> Detector:
    spec = ModelSpec("toy", "o2o", 256, 256, None, names, tuple(range(len(names))), top_k=20)
    return Detector(CallableBackend(run, spec))


def oracle(dataset: DetectionDataset, names: tuple[str, ...]) -> Detector:
    """A model that knows every picture of a digits set by its pixels."""
    known = {read_image(sample.path).tobytes(): sample for sample in dataset.samples}
    label = np.array([names.index(name) for name in dataset.class_names], dtype=np.int32)

    def run(images: np.ndarray[Any, Any]) -> RawDetections:
        n = len(images)
        raw = RawDetections(
            np.zeros((n, 1), np.int32),
            np.zeros((n, 20, 4), np.float32),
            np.zeros((n, 20), np.float32),
            np.zeros((n, 20), np.int32),
        )
        for i, image in enumerate(images):
            sample = known[image.tobytes()]
            count = len(sample.labels)
            raw.num_detections[i] = count
            raw.detection_boxes[i, :count] = sample.boxes
            raw.detection_scores[i, :count] = np.linspace(0.9, 0.06, count)  # some are faint
            raw.detection_classes[i, :count] = label[sample.labels]
        return raw

    return detector_of(run, names)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, train=0, val=20, overlap=0)
    return load_coco(folder, "val")


@pytest.mark.parametrize("names", [CLASS_NAMES, CLASS_NAMES[::-1]])
def test_detector_that_knows_the_answers(digits: DetectionDataset, names: tuple[str, ...]) -> None:
    calls: list[tuple[int, int]] = []
    metrics = evaluate(oracle(digits, names), digits, progress=lambda *done: calls.append(done))
    assert metrics.ap == pytest.approx(1)
    assert metrics.ap_small == metrics.ap_medium == pytest.approx(1)
    assert calls[-1] == (20, 20)


def test_predictions_are_source_boxes_with_the_dataset_ids(digits: DetectionDataset) -> None:
    results = predict(oracle(digits, CLASS_NAMES), digits)
    assert len(results) == sum(len(sample.labels) for sample in digits.samples)
    first, sample = results[0], digits.samples[0]
    x1, y1, x2, y2 = sample.boxes[0].tolist()
    assert first["image_id"] == sample.image_id
    assert first["category_id"] == digits.category_ids[sample.labels[0]]
    assert first["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])


def test_other_classes_and_sizes_are_refused(digits: DetectionDataset, tmp_path: Path) -> None:
    names = (*CLASS_NAMES[:9], "ten")
    with pytest.raises(DataError, match="only in the model: ten; only in the data: 9"):
        evaluate(detector_of(len, names), digits)
    many = (*(f"thing {n}" for n in range(11, 0, -1)), "0")
    with pytest.raises(DataError, match=r"thing 1, thing 2, thing 3, thing 4, .* again with --cl"):
        category_ids_of(many, digits, adopted=True)
    path = tmp_path / "other.png"
    cv2.imwrite(str(path), np.zeros((10, 20, 3), np.uint8))
    sample = dataclasses.replace(digits.samples[0], path=path)
    with pytest.raises(DataError, match="is 20 × 10 pixels, its annotations say 256 × 256"):
        predict(detector_of(len, CLASS_NAMES), dataclasses.replace(digits, samples=(sample,)))
    path.unlink()
    with pytest.raises(InputError, match="no such file; `nmsfree data check` lists all"):
        predict(detector_of(len, CLASS_NAMES), dataclasses.replace(digits, samples=(sample,)))

"""`analyse` as a whole: what is planted in the results is found in the figures."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from runtime_helpers import A, B, Make, result

from nmsfree import ModelSpec, NmsSpec
from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import DataError
from nmsfree.evaluation.analysis import analyse
from nmsfree.evaluation.report import sentences
from nmsfree.evaluation.scores import Result

NAMES, IDS = ("cat", "dog"), (7, 40)


def spec(**fields: Any) -> ModelSpec:
    return dataclasses.replace(ModelSpec("toy", "o2o", 64, 64, 1, NAMES, IDS), **fields)


def two_objects(make_dataset: Make, **fields: Any) -> DetectionDataset:
    return make_dataset({"bbox": A}, {"bbox": B, "category_id": 40}, **fields)


def test_a_perfect_model(make_dataset: Make) -> None:
    analysis = analyse(two_objects(make_dataset), [result(A, 0.9), result(B, 0.6, 40)], spec())
    assert analysis.metrics.ap == pytest.approx(1)
    assert (analysis.images, analysis.objects) == (1, 2)
    assert (analysis.best.precision, analysis.best.recall) == (1, 1)
    assert analysis.duplicates_per_image == analysis.duplicates_at_floor == 0
    assert analysis.cap_hits == 0
    assert analysis.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert analysis.calibration.error == pytest.approx((0.1 + 0.4) / 2)
    assert [r.name for r in analysis.per_class] == ["cat", "dog"]
    assert [(r.objects, r.ap, r.precision, r.recall) for r in analysis.per_class] == [
        (1, pytest.approx(1), 1, 1)
    ] * 2
    assert analysis.thresholds.best_f1_per_class == pytest.approx((0.475, 0.325))


def test_planted_duplicates_are_counted_and_nms_would_help(make_dataset: Make) -> None:
    dataset = make_dataset({"bbox": A}, {"bbox": B}, {"bbox": A, "image_id": 1}, images=2)
    near = [12.0, 10.0, 100.0, 100.0]
    hits = [result(A, 0.9), result(B, 0.5), result(A, 0.4, image=1)]
    clean = analyse(dataset, hits, spec())
    planted = analyse(dataset, [*hits, result(near, 0.8), result(near, 0.06)], spec())
    assert clean.ap_with_nms == clean.metrics.ap == pytest.approx(1)
    # Hit, duplicate, hit, hit, duplicate: precision 1, 2/3, 3/4 at recall 1/3, 2/3, 1; the best
    # beyond counts: 34 points of 1, 67 of 3/4. With NMS all is well.
    assert planted.metrics.ap == pytest.approx((34 + 67 * 0.75) / 101)
    assert planted.ap_with_nms == pytest.approx(1)
    assert planted.best.f1 == pytest.approx(6 / 7)
    assert planted.best_f1_with_nms == pytest.approx(1)
    assert planted.duplicates_at_floor == 1
    assert planted.duplicates_per_image == planted.wrong_duplicates_per_image == 0.5
    assert clean.duplicates_at_floor == 0


@pytest.mark.parametrize(
    ("box", "other", "expected"),
    [
        ([12.0, 10.0, 100.0, 100.0], 7, (1, 1, 0)),  # IoU 0.96
        ([40.0, 10.0, 100.0, 100.0], 7, (0, 1, 0)),  # 0.54
        ([20.0, 20.0, 60.0, 60.0], 7, (0, 0, 1)),  # 0.36, within
        ([100.0, 20.0, 60.0, 40.0], 7, (0, 0, 0)),  # a sixth of it within
        ([20.0, 20.0, 60.0, 60.0], 40, (0, 0, 0)),  # of another class
    ],
)
def test_duplicates_and_nested_pairs(
    make_dataset: Make, box: list[float], other: int, expected: tuple[int, ...]
) -> None:
    dataset = make_dataset({"bbox": A}, {"bbox": box, "category_id": other})
    found = analyse(dataset, [result(A, 0.9), result(box, 0.8, other)], spec())
    assert found.most_objects == 2
    figures = found.duplicates_per_image, found.duplicates_above_half, found.nested_pairs
    assert figures == expected
    below = analyse(make_dataset({"bbox": A}), [result(A, 0.9), result(box, 0.06)], spec())
    assert below.nested_pairs == below.duplicates_above_half == 0, "under the threshold"


def test_true_objects_that_overlap_are_no_wrong_duplicates(make_dataset: Make) -> None:
    """Here NMS would take a right detection away."""
    near = [20.0, 10.0, 100.0, 100.0]  # IoU 90 / 110 = 0.82
    dataset = make_dataset({"bbox": A}, {"bbox": near})
    analysis = analyse(dataset, [result(A, 0.9), result(near, 0.8)], spec())
    assert analysis.duplicates_per_image == 1
    assert analysis.wrong_duplicates_per_image == 0
    assert analysis.metrics.ap == pytest.approx(1)
    assert analysis.ap_with_nms == pytest.approx(51 / 101)
    assert analysis.best_f1_with_nms == pytest.approx(2 / 3)


def test_cap_hits_are_images_that_fill_every_row(make_dataset: Make) -> None:
    dataset = make_dataset({"bbox": A}, images=4)
    results = [
        result([10.0 * i, 5.0, 8.0, 8.0], 0.1 + 0.01 * i, image=image)
        for image, count in enumerate((3, 2, 4))  # and none in the last image
        for i in range(count)
    ]
    assert [analyse(dataset, results, spec(top_k=k)).cap_hits for k in (2, 3, 4, 5)] == [3, 2, 1, 0]
    found = analyse(dataset, [*results, result(A, 0.9)], spec(top_k=2))  # A alone is right
    assert (found.cap_hits, found.truncated) == (3, 0)
    good = [result(A, score) for score in (0.9, 0.95)]
    assert [analyse(dataset, good, spec(top_k=k)).truncated for k in (1, 2, 3)] == [1, 0, 0]
    uncut = analyse(dataset, results, spec(top_k=2), capped=False)  # there are no rows to fill
    assert uncut.cap_hits is None
    assert uncut.to_json()["cap_hits"] is uncut.to_json()["truncated"] is None
    assert "Rows" not in dict(sentences(uncut))


def test_what_lies_in_a_crowd_region_counts_nowhere(make_dataset: Make) -> None:
    crowd = {"bbox": B, "iscrowd": 1}
    inside = [result([155.0 + i, 130.0, 40.0, 40.0], 0.95 - 0.01 * i) for i in range(3)]
    analysis = analyse(make_dataset({"bbox": A}, crowd), [*inside, result(A, 0.5)], spec())
    assert analysis.objects == 1
    assert analysis.best.f1 == 1
    assert analysis.calibration.error == pytest.approx(0.5)
    assert analysis.confusion.sum() == 1
    assert analysis.duplicates_per_image == 2
    assert analysis.wrong_duplicates_per_image == 0


def test_classes_follow_the_model_and_not_the_dataset(make_dataset: Make) -> None:
    dataset = two_objects(make_dataset)
    results = [result(A, 0.9), result(B, 0.6, 40), result([0.0, 0.0, 9.0, 9.0], 0.7, 40)]
    analysis = analyse(dataset, results, spec())
    turned = analyse(dataset, results, spec(class_names=NAMES[::-1], category_ids=(0, 1)))
    assert turned.metrics == analysis.metrics
    assert turned.per_class == analysis.per_class[::-1]
    assert [r.category_id for r in turned.per_class] == [40, 7]
    assert turned.thresholds.best_f1_per_class == analysis.thresholds.best_f1_per_class[::-1]
    swap = [1, 0, 2]
    assert np.array_equal(turned.confusion, analysis.confusion[np.ix_(swap, swap)])


def test_a_class_without_objects_is_left_open(make_dataset: Make) -> None:
    analysis = analyse(make_dataset({"bbox": A}), [result(A, 0.9), result(B, 0.8, 40)], spec())
    dog = analysis.per_class[1]
    assert (dog.objects, dog.ap, dog.ap50, dog.threshold) == (0, None, None, None)
    assert (dog.precision, dog.recall) == (None, None)
    assert analysis.thresholds.best_f1_per_class[1] is None
    assert analysis.metrics.ap == pytest.approx(1)


def test_no_detections(make_dataset: Make) -> None:
    analysis = analyse(two_objects(make_dataset), [], spec(threshold=0.42))
    assert (analysis.metrics.ap, analysis.ap_with_nms, analysis.best.f1) == (0, 0, 0)
    assert analysis.thresholds.best_f1 == 0.42
    assert (analysis.calibration.error, analysis.cap_hits) == (None, 0)
    assert analysis.confusion.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert [(r.precision, r.recall) for r in analysis.per_class] == [(None, 0.0)] * 2


def test_order_of_the_results_does_not_matter(make_dataset: Make) -> None:
    dataset = two_objects(make_dataset, images=2)
    rng = np.random.default_rng(0)
    results = [
        result([*rng.uniform(0, 150, 2), 100.0, 100.0], float(rng.integers(1, 5) / 5), category, i)
        for i in range(2)
        for category in IDS
        for _ in range(20)
    ]

    def figures(found: list[Result]) -> str:
        analysis = analyse(dataset, found, spec())
        return json.dumps([analysis.to_json(), analysis.confusion.tolist()])

    first = figures(results)
    for _ in range(3):
        assert figures([results[i] for i in rng.permutation(len(results))]) == first


def test_target_precision_is_the_callers(make_dataset: Make) -> None:
    dataset = two_objects(make_dataset, images=3)
    results = [result(A, 0.9), result([0.0, 0.0, 9.0, 9.0], 0.7), result(B, 0.6, 40)]
    strict, loose = (
        analyse(dataset, results, spec(), target_precision=p).thresholds for p in (0.9, 0.6)
    )
    assert (strict.at_precision, strict.recall_at_precision) == (0.7, 0.5)
    assert (loose.at_precision, loose.recall_at_precision) == (0.05, 1)
    assert (strict.target_precision, loose.target_precision) == (0.9, 0.6)
    assert strict.measured_on == "toys val, 3 images, IoU 0.5"


def test_other_classes_and_other_results_are_refused(make_dataset: Make) -> None:
    dataset = two_objects(make_dataset)
    with pytest.raises(DataError, match="only in the model: cow; only in the data: dog"):
        analyse(dataset, [], spec(class_names=("cat", "cow")))
    with pytest.raises(DataError, match=r"a result names category 3, which .* does not have"):
        analyse(dataset, [result(A, 0.9, 3)], spec())


def test_json_is_flat_and_complete(make_dataset: Make) -> None:
    analysis = analyse(make_dataset({"bbox": A}), [result(A, 0.9)], spec(nms=NmsSpec(), head="o2m"))
    report = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
    expected = {
        "AP": pytest.approx(1), "AP50": pytest.approx(1), "AP_with_nms": pytest.approx(1),
        "duplicates_per_image": 0, "wrong_duplicates_per_image": 0,
        "duplicates_per_image_at_floor": 0, "cap_hits": 0, "F1": 1, "F1_with_nms": 1,
        "calibration_error": pytest.approx(0.1), "thresholds": analysis.thresholds.to_json(),
        "class_names": ["cat", "dog"],
    }  # fmt: skip
    assert {name: report[name] for name in expected} == expected
    classes = [(c["name"], c["objects"], c["AP"]) for c in report["per_class"]]
    assert classes == [("cat", 1, pytest.approx(1)), ("dog", 0, None)]
    assert sum(b["count"] for b in report["calibration"]) == 1

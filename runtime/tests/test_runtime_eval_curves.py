"""Thresholds and calibration against cases computed by hand."""

import numpy as np
import pytest

from nmsfree.evaluation.curves import BINS, Curve, Point, calibrate, recommend
from nmsfree.spec import Thresholds


def curve(*rows: tuple[float, bool], objects: int, floor: float = 0.05) -> Curve:
    score = np.array([row[0] for row in rows], np.float64)
    hit = np.array([row[1] for row in rows], np.bool_)
    return Curve.of(score, hit, objects, floor)


# Four objects; after 1, 2, … 5 detections precision 1, 1, 2/3, 3/4, 3/5, recall 1/4 … 3/4.
MIXED = curve((0.9, True), (0.8, True), (0.5, False), (0.4, True), (0.2, False), objects=4)


def test_precision_and_recall_by_hand() -> None:
    assert MIXED.precision.tolist() == pytest.approx([1, 1, 2 / 3, 3 / 4, 3 / 5])
    assert MIXED.recall.tolist() == pytest.approx([1 / 4, 2 / 4, 2 / 4, 3 / 4, 3 / 4])
    # Best precision at or beyond recall 0 … 0.5 is 1 (51 of 101 points), up to 0.75 it is 3/4.
    assert MIXED.precision_at_recalls().sum() == pytest.approx(51 + 25 * 0.75)
    order = [3, 0, 4, 2, 1]
    hit = np.array([True, True, False, True, False])
    other = Curve.of(MIXED.score[order], hit[order], 4, 0.05)
    assert other.hits.tolist() == MIXED.hits.tolist()


def test_best_f1_by_hand() -> None:
    # F1 = 2·hits / (kept + objects): 2/5, 4/6, 4/7, 6/8, 6/9. The cut is between 0.4 and 0.2.
    best = MIXED.best_f1()
    assert best == Point(pytest.approx(0.3), pytest.approx(3 / 4), pytest.approx(3 / 4))
    assert best is not None and best.f1 == pytest.approx(0.75)
    # Of all detections it lies above the floor.
    assert curve((0.9, True), objects=1, floor=0.1).best_f1() == Point(pytest.approx(0.5), 1, 1)


def test_equal_scores_are_kept_or_dropped_together() -> None:
    tied = curve((0.9, True), (0.5, True), (0.5, False), (0.5, False), (0.2, True), objects=3)
    # Keeping one of the three would give F1 4/5; possible are 2/4, 4/7 and 6/8.
    best = tied.best_f1()
    assert best is not None
    assert best.threshold == pytest.approx((0.2 + 0.05) / 2)
    assert best.f1 == pytest.approx(6 / 8)
    assert tied.lowest_with_precision(0.9) == Point(0.5, 1, pytest.approx(1 / 3))


def test_lowest_threshold_with_a_precision_by_hand() -> None:
    assert MIXED.lowest_with_precision(0.9) == Point(0.5, 1, 0.5)  # keeps what is above 0.5
    assert MIXED.lowest_with_precision(0.7) == Point(0.2, 0.75, 0.75)  # though 2/3 comes before
    assert MIXED.lowest_with_precision(0.6) == Point(0.05, 0.6, 0.75)  # the floor: all are kept
    assert curve((0.9, False), (0.8, True), objects=1).lowest_with_precision(0.6) is None


def test_no_detections_and_no_hits_have_no_best() -> None:
    for empty in (curve(objects=3), curve((0.9, False), objects=3), curve(objects=0)):
        assert empty.best_f1() is None
        assert empty.lowest_with_precision(0.5) is None
    assert curve(objects=3).precision_at_recalls().tolist() == [0] * 101


def test_values_at_thresholds_agree_with_counting() -> None:
    thresholds = np.array([0.05, 0.2, 0.3, 0.4, 0.8, 0.85, 0.9, 1.0])
    precision, recall = MIXED.at(thresholds)
    kept = [[h for s, h in zip(MIXED.score, [1, 1, 0, 1, 0], strict=True) if s > t]
            for t in thresholds]  # fmt: skip
    assert recall.tolist() == pytest.approx([sum(k) / 4 for k in kept])
    expected = [sum(k) / len(k) if k else float("nan") for k in kept]
    assert precision.tolist() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_recommended_points_are_what_their_thresholds_give(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = np.round(rng.uniform(0.05, 1, 300), 2)
    random = Curve.of(score, rng.random(300) < score**2, 150, 0.05)
    best, precise = random.best_f1(), random.lowest_with_precision(0.8)
    assert best is not None
    assert precise is not None
    for point in (best, precise):
        precision, recall = random.at(np.array([point.threshold]))
        assert (point.precision, point.recall) == (precision[0], recall[0])
    every = np.unique(score)
    precision, recall = random.at(every[:-1])
    assert best.f1 >= (2 * precision * recall / (precision + recall)).max() - 1e-12
    lower = every[every < precise.threshold]
    assert (random.at(lower)[0] < 0.8).all()
    assert precise.precision >= 0.8


def recommended(*curves: Curve) -> Thresholds:
    rows = [
        (score, hit)
        for c in curves
        for score, hit in zip(c.score, np.diff(c.hits, prepend=0) > 0, strict=True)
    ]
    overall = curve(*rows, objects=sum(c.objects for c in curves))
    return recommend(curves, overall, fallback=0.3, target_precision=0.9, measured_on="toys val")[0]


def test_recommendation_by_class() -> None:
    missed = curve((0.7, False), (0.6, False), objects=2)
    absent = curve((0.95, False), objects=0)
    advice = recommended(MIXED, missed, absent)
    # Together: ✗ 0.95, ✓ 0.9, ✓ 0.8, ✗ 0.7, ✗ 0.6, ✗ 0.5, ✓ 0.4, ✗ 0.2 of 6 objects.
    # F1 0, 2/8, 4/9, 4/10, 4/11, 4/12, 6/13, 6/14: the best lies between 0.4 and 0.2.
    assert advice.best_f1 == pytest.approx(0.3)
    assert advice.best_f1_per_class == (pytest.approx(0.3), pytest.approx(0.3), None)
    assert advice.at_precision is None, "the first of all is wrong"
    assert advice.at_precision_per_class == (0.5, None, None)
    assert advice.recall_at_precision_per_class == (0.5, None, None)
    assert (advice.target_precision, advice.measured_on) == (0.9, "toys val")


def test_calibration_by_hand() -> None:
    # Bins of 1/15: 0.05 in the 1st; 0.5 and 0.53 in the 8th (7/15 … 8/15); 1.0 in the last.
    score = np.array([0.05, 0.5, 0.53, 1.0])
    calibration = calibrate(score, np.array([False, True, False, True]))
    filled = {i: b for i, b in enumerate(calibration.bins) if b.count}
    assert {i: b.count for i, b in filled.items()} == {0: 1, 7: 2, 14: 1}
    assert filled[7].score == pytest.approx(0.515)
    assert filled[7].precision == pytest.approx(0.5)
    # 1/4·|0.05 − 0| + 2/4·|0.515 − 0.5| + 1/4·|1 − 1|
    assert calibration.error == pytest.approx(0.05 / 4 + 0.015 / 2)


def test_scores_that_are_probabilities_have_no_error() -> None:
    score = np.repeat((np.arange(BINS) + 0.5) / BINS, 30)
    hit = np.concatenate([np.arange(30) < 2 * i + 1 for i in range(BINS)])  # 30·(i + 0.5)/15
    assert calibrate(score, hit).error == pytest.approx(0, abs=1e-12)
    assert calibrate(score, ~hit).error == pytest.approx(
        np.mean([abs(2 * (i + 0.5) / BINS - 1) for i in range(BINS)])
    )


def test_edges_of_the_bins_belong_to_the_lower_one() -> None:
    for i in range(1, BINS + 1):
        calibration = calibrate(np.array([i / BINS]), np.array([True]))
        assert [b.count for b in calibration.bins].index(1) == i - 1
    nothing = calibrate(np.zeros(0), np.zeros(0, np.bool_))
    assert nothing.error is None and {b.count for b in nothing.bins} == {0}

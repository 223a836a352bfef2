"""Bootstrap intervals: they hold the truth as often as they say, and use what is paired."""

from collections.abc import Callable

import numpy as np
import pytest

from nmsfree_benchmarks.harness.statistics import (
    AIM,
    Interval,
    paired_ratio,
    ratio_of_fastest,
    ratio_of_medians,
)
from nmsfree_benchmarks.harness.timer import Times

MS = 1_000_000
Ratio = Callable[..., Interval]
RUNS = 100


def to_times(milliseconds: np.ndarray) -> Times:
    times: Times = (milliseconds * MS).astype(np.int64)[:, None]
    return times


def lognormal(draw: np.random.Generator, median: float, calls: int) -> Times:
    return to_times(median * np.exp(draw.normal(0, 0.1, calls)))


RATIOS = (paired_ratio, ratio_of_medians, ratio_of_fastest)


@pytest.mark.parametrize("ratio", RATIOS)
def test_intervals_hold_a_known_ratio_as_often_as_they_say(ratio: Ratio) -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(RUNS):
        a, b = lognormal(draw, 12, 60), lognormal(draw, 10, 60)
        found = ratio(a, b)
        held += found.low <= 1.2 <= found.high
    assert 0.88 <= held / RUNS <= 0.99


def test_rounds_of_alike_calls_are_drawn_whole() -> None:
    """With noise that calls of one turn share, blocks hold the truth; single calls pretend."""
    draw = np.random.default_rng(2)
    burst, rounds = 5, 24
    held = dict.fromkeys((burst, 1), 0)
    for _ in range(RUNS):
        noise = np.repeat(np.exp(draw.normal(0, 0.1, (2, rounds))), burst, axis=1)
        a, b = to_times(12 * noise[0]), to_times(10 * noise[1])
        for size in held:
            found = paired_ratio(a, b, size)
            held[size] += found.low <= 1.2 <= found.high
    assert held[burst] / RUNS >= 0.88
    assert held[1] / RUNS <= held[burst] / RUNS - 0.1


def test_paired_rounds_take_out_what_slows_both() -> None:
    draw = np.random.default_rng(3)
    drift = np.linspace(1, 1.5, 100)
    a = to_times(12 * drift * np.exp(draw.normal(0, 0.01, 100)))
    b = to_times(10 * drift * np.exp(draw.normal(0, 0.01, 100)))
    together, apart = paired_ratio(a, b), ratio_of_medians(a, b)
    assert together.value == pytest.approx(apart.value, rel=0.01)
    assert together.high - together.low < (apart.high - apart.low) / 2


def test_the_value_is_that_of_the_middle_pair_over_all_parts() -> None:
    a = np.array([[1, 2], [2, 2], [5, 5]])
    b = np.array([[1], [2], [2]])
    assert paired_ratio(a, b).value == 3 and ratio_of_medians(a, b).value == 2
    assert paired_ratio(to_times(np.ones(10)), to_times(np.ones(10))) == Interval(1, 1, 1)


def test_a_disturbed_half_does_not_move_the_fastest() -> None:
    draw = np.random.default_rng(5)
    a, b = (ms * np.exp(draw.normal(0, 0.01, 80)) for ms in (12, 10))
    b[draw.random(80) < 0.5] *= 3
    assert ratio_of_fastest(to_times(a), to_times(b)).value == pytest.approx(1.2, rel=0.02)


def test_the_same_times_give_the_same_interval() -> None:
    draw = np.random.default_rng(4)
    a, b = lognormal(draw, 1, 30), lognormal(draw, 1, 30)
    assert paired_ratio(a, b) == paired_ratio(a, b)


def test_an_incomplete_last_round_is_left_out() -> None:
    a = to_times(np.array([*[1.0] * 20, 9]))
    assert paired_ratio(a, a.copy(), 2) == Interval(1, 1, 1)
    assert paired_ratio(a, a, 100).value == 1  # a burst longer than the run is one round


def test_what_cannot_be_compared_is_refused() -> None:
    ten, nine = to_times(np.ones(10)), to_times(np.ones(9))
    with pytest.raises(ValueError, match="paired times differ: 10 and 9 calls"):
        paired_ratio(ten, nine, 9)
    assert ratio_of_medians(ten, nine).value == 1
    for ratio in RATIOS:
        with pytest.raises(ValueError, match="no times"):
            ratio(ten[:0], ten[:0])


def test_an_interval_decides_on_one_side_of_one() -> None:
    assert Interval(1.2, 1.1, 1.3).decides
    assert Interval(0.8, 0.7, 0.9).decides
    assert not Interval(1.0, 0.9, 1.1).decides
    assert not Interval(1.1, 1.0, 1.2).decides
    assert Interval(1, 0.9, 1.1).overlaps(Interval(1.2, 1.1, 1.3))
    assert not Interval(1, 0.9, 1.0).overlaps(Interval(1.2, 1.1, 1.3))
    assert str(Interval(1.23456, 1.1, 1.3)) == "1.235 (1.100 – 1.300)"
    assert Interval(-0.001, -0.2, 0.1).text(sign="+") == "+0.00 (-0.20 – +0.10)"


@pytest.mark.parametrize("burst", [1, 3])
@pytest.mark.parametrize("ratio", RATIOS)
def test_under_ten_rounds_there_is_no_interval_and_nothing_follows(
    burst: int, ratio: Ratio
) -> None:
    slow, fast = (to_times(np.full(10 * burst, ms)) for ms in (20.0, 10.0))
    assert ratio(slow, fast, burst) == Interval(2, 2, 2)
    few = ratio(slow[:-1], fast[:-1], burst)
    assert few == Interval(2) and not few.known and not few.decides
    assert few.within(1) is None and few.within(9) is None
    assert few.text(unit=" ms") == "2.00 ms (–)"
    assert few.to_json() == {"value": 2, "low": None, "high": None}
    assert Interval.from_json(few.to_json()) == few
    for quotient in (few.by(Interval(2, 2, 2)), Interval(4, 4, 4).by(few), few.times(3)):
        assert not quotient.known


def test_an_aim_inside_an_interval_is_undecided() -> None:
    aims = [AIM[Interval(1, 0.9, 1.1).within(most)] for most in (1.2, 1.1, 1.0, 0.9, 0.8)]
    assert aims == ["reached", "reached", "undecided", "undecided", "missed"]

"""Statistics and turns."""

import gc
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from nmsfree_benchmarks.harness.options import RunOptions
from nmsfree_benchmarks.harness.run import Run
from nmsfree_benchmarks.harness.statistics import STAGES, median_ms, shares, summarize
from nmsfree_benchmarks.harness.timer import (
    LEAST_ROUNDS,
    Image,
    Plan,
    Stopwatch,
    Times,
    take_turns,
    timed,
)

MS = 1_000_000  # nanoseconds
AT_ONCE = Plan(seconds=0, min_rounds=6, warmup_rounds=1, pause=0, fixed=True)
IMAGES = [np.full((1, 1, 3), i, np.uint8) for i in range(4)]


def times_of(*totals: float) -> Times:
    """Times [rounds, 3] in which half of each total is network, a quarter each of the others."""
    return (np.array([[t / 4, t / 2, t / 4] for t in totals]) * MS).astype(np.int64)


@pytest.mark.parametrize(
    ("calls", "p90", "p99"), [(1, 0, 0), (19, 0, 0), (20, 1, 0), (99, 1, 0), (100, 1, 1)]
)
def test_a_percentile_needs_its_calls(calls: int, p90: bool, p99: bool) -> None:
    summary = summarize(times_of(*range(1, calls + 1)))
    assert (summary.p90 is not None, summary.p99 is not None) == (p90, p99)


def test_percentiles_are_those_of_the_totals() -> None:
    summary = summarize(times_of(*range(1, 102)))  # 1 … 101 ms: percentile p is 1 + p ms
    assert (summary.p50, summary.p90, summary.p99) == pytest.approx((51, 91, 100))
    assert summary.fps == pytest.approx(1000 / 51)
    assert summary.spread == pytest.approx(50 / 51)


def test_equal_times_are_trusted_and_scattered_ones_are_not() -> None:
    assert summarize(times_of(5, 5, 5, 5)).spread == 0
    assert summarize(times_of(100, 101, 102, 103)).trusted
    assert not summarize(times_of(100, 100, 120, 120)).trusted


def test_order_of_the_rounds_does_not_matter() -> None:
    one, other = summarize(times_of(3, 1, 2, 9)), summarize(times_of(9, 3, 2, 1))
    assert one.percentiles == other.percentiles


def test_a_machine_that_slows_down_is_seen_to() -> None:
    assert summarize(times_of(*[10] * 30)).drift == 0
    assert summarize(times_of(*[10] * 10, *[11] * 10, *[12] * 10)).drift == pytest.approx(0.2)
    assert summarize(times_of(12, 10)).drift == 0  # too few to tell


def test_shares_sum_to_one_and_follow_the_stages() -> None:
    found = shares(times_of(8, 4, 12))
    assert found == pytest.approx({"preprocess": 0.25, "network": 0.5, "postprocess": 0.25})
    assert tuple(found) == STAGES


def test_post_processing_in_the_graph_is_taken_off_the_network() -> None:
    whole = np.array([[1, 10, 1]] * 3) * MS
    found = shares(whole, np.array([[2]] * 3) * MS)
    assert found == pytest.approx({"preprocess": 1 / 12, "network": 8 / 12, "postprocess": 3 / 12})


def test_no_share_is_negative() -> None:
    whole = np.array([[1, 10, 1]] * 3) * MS
    found = shares(whole, np.array([[11]] * 3) * MS)  # the part took longer than the whole
    assert found == pytest.approx({"preprocess": 1 / 12, "network": 0, "postprocess": 11 / 12})


def test_laps_sum_to_the_whole() -> None:
    watch = Stopwatch()
    for _ in range(3):
        watch.start()
        for _ in STAGES:
            watch.mark()
        laps = watch.laps()
        assert len(laps) == len(STAGES)
        assert sum(laps) == watch._marks[-1] - watch._marks[0]
        assert min(laps) >= 0


def recorded(plan: Plan) -> tuple[list[tuple[str, int]], dict[str, Times]]:
    """Turns of three calls: (name, image) in the order they ran, and the times."""
    log: list[tuple[str, int]] = []

    def call(name: str, image: Image) -> Sequence[int]:
        log.append((name, int(image[0, 0, 0])))
        return (len(log),)

    calls = {n: lambda image, n=n: call(n, image) for n in "abc"}
    return log, take_turns(calls, IMAGES, plan)


def test_each_round_runs_every_call_once_on_the_same_image() -> None:
    log, times = recorded(AT_ONCE)
    warm, log = log[:3], log[3:]
    assert warm == [("a", 0), ("b", 0), ("c", 0)]
    rounds = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert len(rounds) == 6
    for index, turn in enumerate(rounds):
        assert sorted(name for name, _ in turn) == ["a", "b", "c"]
        assert {image for _, image in turn} == {index % len(IMAGES)}
    assert len({tuple(name for name, _ in turn) for turn in rounds}) > 1  # the order varies
    assert {name: t.shape for name, t in times.items()} == dict.fromkeys("abc", (6, 1))


def test_a_turn_is_untimed_calls_then_a_burst_over_the_images() -> None:
    plan = Plan(seconds=0, min_rounds=3, warmup_rounds=0, pause=0, lead_in=2, burst=3, fixed=True)
    log, times = recorded(plan)
    turns = [log[i : i + 5] for i in range(0, len(log), 5)]
    assert len(turns) == 3 * 3
    for index, turn in enumerate(turns):
        first = index // 3 * 3
        assert len({name for name, _ in turn}) == 1
        expected = [first, first, first, first + 1, first + 2]
        assert [image for _, image in turn] == [i % len(IMAGES) for i in expected]
    timed = sorted(int(t) for rows in times.values() for t in rows.ravel())
    assert timed == [i + 1 for i in range(45) if i % 5 >= 2]  # the calls after each lead-in


def test_same_order_in_every_run() -> None:
    assert recorded(AT_ONCE)[0] == recorded(AT_ONCE)[0]


def test_rounds_stop_at_the_most() -> None:
    plan = Plan(seconds=60, min_rounds=1, max_rounds=5, warmup_rounds=0, pause=0)
    assert len(recorded(plan)[1]["a"]) == 5


def test_collector_is_off_while_timing_and_on_again_after_an_error() -> None:
    seen = []

    def call(image: Image) -> Sequence[int]:
        seen.append(gc.isenabled())
        if len(seen) == 3:
            raise RuntimeError
        return (1,)

    assert gc.isenabled()
    with pytest.raises(RuntimeError):
        take_turns({"a": call}, IMAGES, AT_ONCE)
    assert seen == [True, False, False]  # one warm-up round, two timed ones
    assert gc.isenabled()


def test_what_is_asked_for_replaces_the_plans_own() -> None:
    plan = Plan(seconds=9, min_rounds=7, pause=0.03)
    asked = RunOptions(threads=1, seconds=2.0, pause=40.0)
    assert asked.timed(plan) == Plan(seconds=2.0, min_rounds=7, pause=0.04)
    assert asked.settings() == {"pause_ms": 40.0}
    assert RunOptions().timed(plan) == plan and RunOptions().settings() == {}
    assert asked.command_line("nms") == "nmsfree bench nms --threads 1 --seconds 2 --pause 40"


def test_a_plan_fits_the_machine() -> None:
    """Ten rounds of two calls, each 5 s; what is said to take 100 s takes no more."""
    plan = Plan(seconds=100, min_rounds=10, lead_in=3, burst=5, pause=0)
    fast, slow, slowest = (plan.fitted(seconds, 2) for seconds in (1, 2, 10))
    assert (fast.lead_in, fast.burst) == (3, 5)
    assert (slow.lead_in, slow.burst) == (1, 4)
    assert (slowest.lead_in, slowest.burst) == (0, 1)
    assert Plan(seconds=0, burst=5, fixed=True).fitted(9, 1).burst == 5


@pytest.mark.parametrize(("limit", "rounds"), [(0, 3), (math.inf, 10)])
def test_a_plan_out_of_time_has_the_fewest_rounds_and_no_interval(
    limit: float, rounds: int
) -> None:
    plan = Plan(seconds=0, limit=limit, pause=0)
    heard: list[tuple[int, int]] = []
    times = take_turns({"a": lambda _: (1,)}, IMAGES, plan, lambda *said: heard.append(said))
    assert len(times["a"]) == rounds == heard[-1][0]
    assert median_ms(times["a"]).known == (rounds == 10)


def test_only_a_quick_run_has_an_end() -> None:
    def left(**options: Any) -> float:
        return Run(RunOptions(threads=1, **options), lambda *_: None, ExitStack()).left

    assert 0 < left(quick=True) <= 60
    assert left() == left(quick=True, seconds=0) == math.inf


def test_exports_take_no_time_of_a_quick_run_and_a_late_one_hurries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(RunOptions(threads=1, quick=True), lambda *_: None, ExitStack())
    now = time.monotonic()

    def export_all(*_: Any) -> dict[str, str]:
        monkeypatch.setattr(time, "monotonic", lambda: now + 100)
        return {}

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("nmsfree_benchmarks.harness.exports.export_all", export_all)
    run.export([])
    assert 50 < run.left <= 60 and not run.hurries("AP") and not run.skipped
    monkeypatch.setattr(time, "monotonic", lambda: now + 140)
    assert run.hurries("AP") and run.skipped == {"AP": "a quick run has no time for it here"}


@pytest.mark.parametrize(("most", "rounds"), [(10, 10), (11, LEAST_ROUNDS)])
def test_a_stream_is_not_cut_when_the_time_is_up(most: int, rounds: int) -> None:
    run = Run(RunOptions(threads=1, quick=True), lambda *_: None, ExitStack())
    run._ends -= 100  # seconds ago
    plan = Plan(seconds=0, min_rounds=10, max_rounds=most, pause=0)
    assert len(run.time({"a": lambda _: (1,)}, IMAGES, plan)["a"]) == rounds


def test_processor_time_is_that_of_the_timed_part() -> None:
    def work(image: Image) -> None:
        sum(range(200_000))

    def prepare(image: Image) -> Image:
        sum(range(2_000_000))
        return image

    plan = Plan(seconds=0, min_rounds=3, pause=0, fixed=True)
    found = take_turns({"a": timed(work, prepare), "b": lambda _: (1,)}, IMAGES, plan)
    assert list(found.processor) == ["a"]  # the other one does not tell
    assert (found.processor["a"] <= 1.5 * found["a"][:, 0]).all()
    assert found.figures("b") == {} and len(found.figures("a")["processor_ns"]) == 3

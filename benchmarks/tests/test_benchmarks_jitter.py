"""Latency over a stream whose crowding changes: a whole small run, and what is said of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks_sample import check_written

from nmsfree_benchmarks.harness.records import Results
from nmsfree_benchmarks.harness.run import ask
from nmsfree_benchmarks.harness.statistics import tail, undisturbed
from nmsfree_benchmarks.harness.timer import between_probes
from nmsfree_benchmarks.questions import jitter as QUESTION
from nmsfree_benchmarks.questions.jitter import (
    Options,
    facts,
    in_order,
    label,
    ramp,
    stream_plan,
    tables,
)

WEIGHTS = Path(__file__).parents[2] / "weights"
LEVELS = (0, 5, 20)
UP_AND_DOWN = [0, 5, 20, 20, 5, 0]
PASSES = 3  # 18 calls in 6 rounds: too few for any interval or percentile
DETECTORS = ["NMS-free", "NMS, floor 0.05", "NMS, floor 0.001"]


@pytest.fixture(scope="module")
def results(work: Path) -> Results:
    options = Options(
        weights=WEIGHTS,
        work=work,
        threads=1,
        quick=True,
        passes=PASSES,
        levels=LEVELS,
        tiles=1,
        side=256,
    )
    return ask(QUESTION, options)


def test_the_stream_goes_up_and_down_with_other_scenes() -> None:
    frames = list(ramp(LEVELS, 1))
    assert [len(frame.labels) for frame in frames] == UP_AND_DOWN
    assert len({frame.image.tobytes() for frame in frames}) == len(frames)
    shuffled = in_order(frames, "shuffled")
    ids = [[id(f) for f in found] for found in (frames, shuffled, in_order(frames, "shuffled"))]
    assert [id(f) for f in in_order(frames, "ramp")] == ids[0]
    assert ids[1] == ids[2] != ids[0] and set(ids[1]) == set(ids[0])


@pytest.mark.parametrize(("frames", "burst"), [(20, 5), (10, 5), (6, 3), (4, 4), (7, 1)])
def test_the_stream_is_a_whole_number_of_turns(frames: int, burst: int) -> None:
    assert stream_plan(frames, 2).burst == burst


def test_every_detector_sees_every_frame_of_both_orders(results: Results) -> None:
    assert [(r.parameters["order"], label(r)) for r in results.records] == [
        (order, name) for order in ("ramp", "shuffled") for name in DETECTORS
    ]
    for record in results.records:
        objects = record.figures["objects"]
        assert record.times.shape == (PASSES * len(UP_AND_DOWN), 3)
        assert len(objects) == len(record.times)
        assert sorted(objects) == sorted(PASSES * UP_AND_DOWN)
        assert record.figures["found_empty"] <= 2 < record.figures["found_fullest"]
        assert record.subject is not None and record.subject.size == (256, 256)
        assert np.array(record.figures["probes_ns"]).shape == (len(record.times), 2)
        found = results.facts[record.name]
        assert 0 <= found["undisturbed_calls"] <= len(record.times)
        assert found["undisturbed_p99_by_p50"] is None  # a handful of calls has no 99th percentile
    assert results.records[0].figures["objects"] == PASSES * UP_AND_DOWN
    orders = [results.records[i].figures["objects"] for i in (0, 3)]
    assert orders[0] != orders[1] and len(results.ratios) == 4


def test_a_run_leaves_a_file_a_picture_and_a_table(results: Results, tmp_path: Path) -> None:
    assert "| shuffled | NMS-free |" in check_written(QUESTION, results, tmp_path)


def said_of(results: Results) -> list[str]:
    return list(QUESTION.conclusions(results))


def steady(results: Results, per_object: float) -> Results:
    """A run twice as long on an idle machine: 10 ms, and with NMS so many more for every object."""
    records = []
    for record in results.records:
        figures = {**record.figures, "objects": 2 * record.figures["objects"]}
        figures["probes_ns"] = 2 * record.figures["probes_ns"]
        objects = np.array(figures["objects"])
        extra = 0 if label(record) == "NMS-free" else per_object * objects
        times = np.zeros((len(objects), record.times.shape[1]))
        times[:, 1] = 1e6 * (10 + extra)
        records.append(replace(record, times=times, figures=figures))
    idle = replace(results, records=tuple(records), other_load=0.0)
    return replace(idle, facts=facts(idle))


def test_facts_tell_content_from_none(results: Results) -> None:
    found = steady(results, 0.05)
    free, with_nms = found.records[0], found.records[1]
    read = found.facts[with_nms.name]
    assert read["ms_per_100_objects"]["value"] == pytest.approx(5, abs=1e-3)
    assert read["worst_by_p50"] == pytest.approx(11 / 10.25, abs=1e-3)
    assert read["slowest_level_by_fastest"] == pytest.approx(1.1)
    assert found.facts[free.name]["p99_by_p50"] is None
    assert found.facts[free.name]["worst_frame_by_median"] == 1
    said = said_of(found)
    assert said[-6].endswith(
        "+0.00 (+0.00 – +0.00) ms per 100 objects: no dependence on content is seen."
    )
    assert said[-5].endswith("+5.00 (+5.00 – +5.00) ms per 100 objects: depends on content.")


def test_the_work_beside_a_call_is_split_off_again() -> None:
    probed = between_probes(lambda image: (1, 2, 3), lambda image: (int(image[0, 0, 0]),))
    assert list(probed(np.full((1, 1, 3), 7, np.uint8))) == [1, 2, 3, 7, 7]


def test_calls_beside_slow_work_are_disturbed() -> None:
    """Usual work takes 100: what is usual is that of everything that took turns."""
    a = np.array([[100, 100], [100, 106], [130, 100], [105, 104]])
    b = np.array([[200, 200], [100, 100]])
    assert [chosen.tolist() for chosen in undisturbed([a, b])] == [
        [True, False, False, True],
        [False, True],
    ]


def disturbed(results: Results, calls: int = 200) -> Results:
    """10 ms a call, every tenth call 15 ms because the machine was slow then."""
    records = []
    for record in results.records:
        slow = np.arange(calls) % 10 == 9
        times = np.zeros((calls, 3), np.int64)
        times[:, 1] = np.where(slow, 15e6, 10e6)
        probes = np.where(slow, 4e6, 3e6).astype(np.int64)
        objects = [record.figures["objects"][i % len(UP_AND_DOWN)] for i in range(calls)]
        figures = {**record.figures, "objects": objects, "probes_ns": probes[:, None].repeat(2, 1)}
        records.append(replace(record, times=times, figures=figures))
    settings = {**results.settings, "frames": 1, "burst": 5}
    found = replace(results, records=tuple(records), settings=settings, other_load=0.0)
    return replace(found, facts=facts(found))


def test_the_machines_tail_is_told_from_the_detectors(results: Results) -> None:
    found = disturbed(results)
    read = found.facts[found.records[0].name]
    assert read["p99_by_p50"] == 1.5 and read["probe_p99_by_p50"] == pytest.approx(4 / 3, 1e-3)
    assert (read["undisturbed_calls"], read["undisturbed_levels"]) == (180, 3)
    assert read["undisturbed_p99_by_p50"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert read["undisturbed_probe_p99_by_p50"] == 1.0
    said = said_of(found)
    assert said[0] == (
        "NMS-free, undisturbed calls: p99 / p50 at most 1.00 (1.00 – 1.00); aim 1.10: reached."
    )
    assert any("p99 / p50 of a constant matrix product is 1.33." in line for line in said)
    assert any("NMS-free 1.00 in 180 of 200 calls (the product 1.00)" in line for line in said)
    assert said_of(replace(found, other_load=1.5)) == said
    few = said_of(disturbed(results, calls=100))
    assert few[0].startswith("Whether p99 / p50 of the NMS-free detector is at most 1.10 is open")
    assert tail(np.ones(99), 1) is None
    assert tail(np.ones(200), 1, np.arange(200) < 99) is None


def test_an_aim_inside_the_interval_of_a_tail_is_undecided(results: Results) -> None:
    found = disturbed(results)
    for bounds, verdict in (
        ((1.0, 1.1), "reached"),
        ((1.0, 1.2), "undecided"),
        ((1.2, 1.3), "missed"),
    ):
        tails = {"value": bounds[0], "low": bounds[0], "high": bounds[1]}
        changed = {name: {**f, "undisturbed_p99_by_p50": tails} for name, f in found.facts.items()}
        assert said_of(replace(found, facts=changed))[0].endswith(f"aim 1.10: {verdict}.")


def test_calls_of_one_turn_are_drawn_together_for_a_tail() -> None:
    """Slow turns, not slow calls: single calls would pretend to know the tail."""
    slow = np.repeat(np.random.default_rng(0).random(80) < 0.03, 10)
    milliseconds = np.where(slow, 15.0, 10.0) + np.random.default_rng(1).random(800)
    turns, calls = tail(milliseconds, 10), tail(milliseconds, 1)
    assert turns is not None and calls is not None and turns.value == calls.value
    assert turns.high - turns.low > 1.5 * (calls.high - calls.low)


def test_results_without_probes_are_judged_by_all_calls(results: Results) -> None:
    """As those of a GPU, and those of earlier versions."""
    found = disturbed(results)
    records = [
        replace(r, figures={k: v for k, v in r.figures.items() if k != "probes_ns"})
        for r in found.records
    ]
    bare = replace(found, records=tuple(records))
    bare = replace(bare, facts=facts(bare))
    said = said_of(bare)
    assert said[0].startswith("NMS-free, all calls: p99 / p50 at most 1.50")
    assert said[0].endswith("aim 1.10: missed.")
    assert not any("The machine itself" in line for line in said)
    assert tables(bare)[0].rows[0][6] == "–"

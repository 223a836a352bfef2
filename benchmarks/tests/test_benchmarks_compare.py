"""Two result files: what is refused and why, what changed, and the exit status."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks_sample import (
    ENVIRONMENT,
    record_of,
    results_of,
    subject_of,
    times_of,
)
from typer.testing import CliRunner

from nmsfree.errors import GateError, InputError
from nmsfree_benchmarks.cli import app
from nmsfree_benchmarks.harness.records import Ratio, Results
from nmsfree_benchmarks.harness.statistics import Interval
from nmsfree_benchmarks.report.compare import agreement
from nmsfree_benchmarks.report.compare import compare_runs as compare


def changed(name: str, value: Any) -> Results:
    return results_of(environment=ENVIRONMENT | {name: value})


def with_subject(**changes: Any) -> Results:
    return results_of(records=(record_of("free", 5, subject=subject_of(**changes)),), ratios=())


ONE = (record_of("free", 5),)
REFUSED = {
    "kind is 'nms' before and 'jitter' after": results_of(kind="jitter"),
    "quick is True before and False after": results_of(quick=False),
    "device is 'cpu' before and 'cuda' after": changed("device", "cuda"),
    "processor is 'A processor' before and 'Another' after": changed("processor", "Another"),
    "cores is 2 before and 8 after": changed("cores", 8),
    "memory_gib is 8 before and 16 after": changed("memory_gib", 16),
    "system is 'Linux x86_64' before and 'Windows AMD64' after": changed("system", "Windows AMD64"),
    "gpu is None before and 'RTX' after": changed("gpu", "RTX"),
    "threads is 2 before and 1 after": changed("threads", 1),
    "images is 4 before and 8 after": results_of(settings={"burst": 2, "images": 8}),
    "seconds is None before and 3 after": results_of(
        settings={"burst": 2, "images": 4, "seconds": 3}
    ),
    "free: parameters is {'objects': 4} before and {'objects': 9} after": results_of(
        records=(record_of("free", 5, parameters={"objects": 9}),), ratios=()
    ),
    "free: precision is 'fp32' before and 'int8' after": with_subject(precision="int8"),
    "free: size is [256, 256] before and [512, 512] after": with_subject(size=(512, 512)),
    "free: score_floor is 0.05 before and 0.3 after": with_subject(score_floor=0.3),
    "free: model is 'fcos_e2e_nano' before and None after": results_of(
        records=(record_of("free", 5, subject=None),), ratios=()
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_runs_that_differ_in_a_setting_are_refused(reason: str) -> None:
    with pytest.raises(InputError) as caught:
        compare(results_of(), REFUSED[reason])
    assert str(caught.value) == f"the runs cannot be compared: {reason}"


def test_runs_without_a_common_row_are_refused() -> None:
    other = results_of(records=(record_of("new", 5),), ratios=())
    with pytest.raises(InputError, match="no row in common, expected two runs of one benchmark"):
        compare(results_of(), other)


def test_what_changed_is_told_with_its_interval() -> None:
    after = results_of(
        records=(
            record_of("free", 10, subject=subject_of(ap=0.5, sha256="cd" * 32)),
            record_of("new", 1),
        ),
        ratios=(),
        environment=ENVIRONMENT | {"versions": {"onnxruntime": "1.32.0", "torch": "2.13.0"}},
    )
    found = compare(results_of(), after)
    (change,) = found.changes
    assert change.interval.value == pytest.approx(2, rel=0.01)
    assert change.slower_than(1.9) and not change.slower_than(2.1)
    assert found.regressions(1.05) == [change]
    assert (change.ap_before, change.ap_after) == (0.77, 0.5)
    assert found.differences == (
        "numpy 2.4.6 → missing",
        "onnxruntime 1.31.0 → 1.32.0",
        "torch missing → 2.13.0",
        "free: another file",
    )
    assert (found.only_before, found.only_after) == (("nms",), ("new",))
    assert not found.doubts
    json.dumps(found.to_json())


def test_a_faster_run_is_no_regression_and_a_noisy_one_is_doubted() -> None:
    after = results_of(records=(record_of("free", 4),), ratios=(), other_load=1.0)
    found = compare(results_of(), after)
    assert not found.regressions(1)
    assert found.changes[0].interval.high < 1
    assert found.doubts == (
        "after: a busy machine, what its intervals do not tell is open: other work kept 1.0 "
        "cores busy (at most 0.3): stop it and measure again",
    )


@pytest.mark.parametrize(
    "settings", [{"burst": 5}, {"bursts": {"256x256": 5}}, {"burst": {"x": 5}}]
)
def test_calls_of_a_turn_are_drawn_together(settings: dict[str, Any]) -> None:
    """They resemble each other, so the interval is wider than that of single calls."""
    alike = times_of(5, calls=12, spread=0.1).repeat(5, axis=0)
    record = record_of("free", 5, times=alike, parameters={"where": "x"})
    wide, narrow = (
        compare(run, run).changes[0].interval
        for run in (
            results_of(records=(record,), ratios=(), settings=kept)
            for kept in (settings, {"burst": 1})
        )
    )
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_ratios_are_compared_across_devices() -> None:
    before = results_of()
    (ratio,) = before.ratios
    double = replace(ratio, interval=Interval(*(2 * v for v in (2.0, 1.9, 2.1))))
    after = replace(changed("processor", "Another"), ratios=(double,), settings=before.settings)
    found = compare(before, after, by_ratios=True)
    (change,) = found.changes
    assert change.name == "with NMS by without: nms / free"
    assert change.interval.value == pytest.approx(2, rel=0.02)
    assert change.interval.low == pytest.approx(3.8 / ratio.interval.high)
    assert found.regressions(1.5) == [change]
    assert agreement(before, after) == (0, 1)
    assert agreement(before, before) == (1, 1)
    assert agreement(before, before, "with NMS") == (1, 1)
    assert agreement(before, before, "no such ratio") == (0, 0)


def test_a_speed_that_grows_is_no_regression() -> None:
    """Ratios of times grow when something becomes slower, those of speeds when it gains."""
    speed = Ratio("free", "nms", "FP32 in ONNX Runtime by OpenVINO", Interval(2.0, 1.9, 2.1))
    twice = replace(speed, interval=Interval(4.0, 3.8, 4.2))
    before, after = (replace(results_of(), ratios=(ratio,)) for ratio in (speed, twice))
    faster = compare(before, after, by_ratios=True)
    assert faster.changes[0].interval.value == pytest.approx(0.5)
    assert faster.regressions(1.05) == []
    slower = compare(after, before, by_ratios=True)
    assert slower.changes[0].interval.low == pytest.approx(3.8 / 2.1)
    assert len(slower.regressions(1.05)) == 1


def test_under_ten_rounds_nothing_is_concluded() -> None:
    """A ratio of two runs is as sure as the shorter one."""
    short, long = (
        results_of(records=(record_of("free", 5, times=times_of(ms, calls=calls)),), ratios=())
        for ms, calls in ((5, 9), (50, 30))
    )
    for before, after in ((short, long), (long, short)):
        found = compare(before, after)
        assert found.regressions(1.05) == []
        assert found.changes[0].meaning(1.05) == "undecided: under 10 rounds"
        assert found.to_json()["changes"][0]["interval"]["low"] is None
    before = results_of()
    unsure = replace(before.ratios[0], interval=Interval(9.0))
    after = replace(before, ratios=(unsure,))
    assert compare(before, after, by_ratios=True).regressions(1.05) == []
    assert agreement(before, after) == (0, 0)


def test_only_what_is_named_is_compared() -> None:
    run = results_of()
    names = [change.name for change in compare(run, run).changes]
    assert len(names) > 1
    assert [c.name for c in compare(run, run, only=names[0]).changes] == [names[0]]
    with pytest.raises(InputError, match=r"no row in common whose name contains 'other', expected"):
        compare(run, run, only="other")


def test_ratios_that_only_one_run_has_are_no_change() -> None:
    before = results_of()
    other = replace(before, ratios=(Ratio("a", "b", "else", Interval(1, 1, 1)),))
    with pytest.raises(InputError, match="no row in common"):
        compare(before, other, by_ratios=True)


def write(folder: Path, name: str, results: Results) -> str:
    results.write(folder / name)
    return str(folder / name)


def test_the_command_line_gates(tmp_path: Path) -> None:
    before = write(tmp_path, "a.json", results_of())
    slower = write(tmp_path, "b.json", results_of(records=(record_of("free", 10),), ratios=()))
    run = CliRunner()
    same = run.invoke(app, ["compare", before, before, "--json", "-"])
    assert same.exit_code == 0
    report = json.loads(same.stdout)
    assert (report["ratios_overlapping"], report["ratios_in_both"]) == (1, 1)
    with pytest.raises(GateError, match=r"1 of 1 rows are slower than 1.05 ×, the worst free: "):
        run.invoke(app, ["compare", before, slower], catch_exceptions=False)
    tolerant = run.invoke(app, ["compare", before, slower, "--tolerance", "2.5"])
    assert tolerant.exit_code == 0
    assert "tolerated" in tolerant.output


def test_a_comparison_replaces_none_of_its_files(tmp_path: Path) -> None:
    before = write(tmp_path, "a.json", results_of())
    content = Path(before).read_bytes()
    with pytest.raises(InputError, match="is an input of this command"):
        CliRunner().invoke(
            app, ["compare", before, before, "--json", before], catch_exceptions=False
        )
    assert Path(before).read_bytes() == content

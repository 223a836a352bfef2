"""The table of models: every column, the same numbers everywhere, nothing about the host."""

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmarks_sample as sample
import numpy as np
import pytest
from benchmarks_sample import check_written, shown_in, subject_of

from nmsfree_benchmarks.harness.machine import describe
from nmsfree_benchmarks.harness.records import Record, Results
from nmsfree_benchmarks.harness.run import lines, markdown
from nmsfree_benchmarks.harness.statistics import STAGES
from nmsfree_benchmarks.harness.timer import Times
from nmsfree_benchmarks.questions.models import question as QUESTION
from nmsfree_benchmarks.questions.models.summary import CPU_ENGINES, NAMES, detectors

MS = 1_000_000
NMS = {"iou": 0.6, "class_aware": True, "candidates_per_level": 1000}
SHARES = dict(zip((f"{stage}_share" for stage in STAGES), (0.1, 0.6, 0.3), strict=True))


def times_of(*stages: float, rounds: int = 12) -> Times:
    """The same milliseconds of each stage in every round, plus a little."""
    jitter = np.arange(rounds)[:, None] * 0.01
    times: Times = ((np.array([stages]) + jitter) * MS).astype(np.int64)
    return times


def row(name: str, engine: str, scale: float, **changes: Any) -> list[Record]:
    """A model in an engine, and its engine alone."""
    large = "r18" in name
    state = {
        "head": "o2m" if "_rt_" in name else "o2o",
        "size": (512, 736) if large else (256, 256),
        "classes": 80 if large else 10,
        "training": "untrained" if large else "digits",
        "nms": NMS if "_rt_" in name else None,
        "engine": engine,
        "ap": None if large else 0.7123,
        "ap50": None if large else 0.9456,
        "ap_images": 0 if large else 300,
    }
    subject = subject_of(name, **state | changes)
    figures = {**SHARES, **({"nms_candidates": 1234.0} if subject.nms else {})}
    whole = times_of(scale, 8 * scale, 2 * scale)
    record = Record(f"{name} {engine}", {"call": "detector"}, whole, STAGES, figures, subject)
    if engine.startswith("eager"):
        return [record]
    bare = Record(f"{record.name} bare", {"call": "bare"}, times_of(8 * scale), subject=subject)
    return [record, bare]


def report_of(*rows: list[Record], load: float = 0.0) -> Results:
    records = tuple(record for pair in rows for record in pair)
    found = sample.results_of(
        kind="table", records=records, other_load=load, environment=describe(2), quick=False,
        command="nmsfree bench", settings={"bursts": {}}, seconds=9.87,
    )  # fmt: skip
    found = replace(found, ratios=tuple(QUESTION.ratios(found)))
    return replace(found, facts=dict(QUESTION.facts(found)))


@pytest.fixture(scope="module")
def report() -> Results:
    return report_of(
        *(
            row(f"fcos_{model}_{size}", engine, scale * (1 if size == "nano" else 30) + i)
            for size in ("nano", "r18_3x")
            for model in ("rt", "o2o", "e2e")
            for i, (engine, scale) in enumerate(zip(CPU_ENGINES, (3.0, 3.2, 2.5, 1.0), strict=True))
        )
    )


def shown(report: Results) -> str:
    tables = (table.rich() for table in QUESTION.tables(report))
    return shown_in(300, *tables, *lines(QUESTION, report))


def test_facts_are_those_of_the_table(report: Results) -> None:
    facts = report.facts
    p50 = {(r.state.model, r.state.engine): r.summary.p50 for r in detectors(report)}
    assert len(facts["onnxruntime_speedup"]) == 6
    for model, value in facts["onnxruntime_speedup"].items():
        expected = p50[model, "eager_timing"] / p50[model, "onnxruntime"]
        assert value == pytest.approx(expected, rel=1e-3)
    assert facts["ap_gap"] == {"fcos_o2o_nano": 0, "fcos_e2e_nano": 0}
    for value in facts["detector_overhead"].values():
        assert value == pytest.approx(11 / 8, rel=0.01)
    for model, value in facts["onnxruntime_postprocess_ms"].items():
        assert value == pytest.approx(p50[model, "onnxruntime"] * 0.3, rel=0.02)


def test_other_engines_stand_beside_fp32_in_onnx_runtime() -> None:
    """Whose overhead is told, though others have a bare call, too."""
    name = "fcos_rt_nano"
    found = report_of(row(name, "onnxruntime", 4.0), row(name, "openvino_int8", 2.0))
    assert found.facts["detector_overhead"] == {name: pytest.approx(11 / 8, rel=0.01)}
    assert found.facts["speed_beside_fp32"] == {f"{name} openvino_int8": pytest.approx(2, rel=0.01)}
    (ratio,) = [r for r in found.ratios if r.is_speed]
    assert ratio.meaning == "FP32 in ONNX Runtime by OpenVINO, INT8"
    assert (ratio.of, ratio.to) == (f"{name} onnxruntime", f"{name} openvino_int8")
    line = f"{name}, times the speed of FP32 in ONNX Runtime (95 %): OpenVINO, INT8 1.99"
    assert line in "\n".join(lines(QUESTION, found))
    assert any("256: 1.99 to 1.99 × the speed" in c for c in QUESTION.conclusions(found))


def test_on_a_gpu_rows_stand_beside_fp32_in_onnx_runtime_there() -> None:
    name = "fcos_e2e_nano"
    found = report_of(row(name, "onnxruntime_cuda", 4.0), row(name, "tensorrt_rtx_fp16", 1.0))
    (ratio,) = [r for r in found.ratios if r.is_speed]
    assert (ratio.of, ratio.to) == (f"{name} onnxruntime_cuda", f"{name} tensorrt_rtx_fp16")
    assert list(found.facts["speed_beside_fp32"]) == [f"{name} tensorrt_rtx_fp16"]
    assert name in found.facts["detector_overhead"]


def test_ratios_compare_what_belongs_together(report: Results) -> None:
    p50 = {record.name: record.summary.p50 for record in report.records}
    assert {r.meaning for r in report.ratios} == {
        "eager by ONNX Runtime",
        "Detector by bare call",
        "with NMS by without",
    }
    for ratio in report.ratios:
        assert ratio.interval.value == pytest.approx(p50[ratio.of] / p50[ratio.to], rel=1e-3)
    with_nms = [r for r in report.ratios if r.meaning == "with NMS by without"]
    assert len(with_nms) == 2 * 2 * 4  # sizes, NMS-free models, engines
    for ratio in with_nms:
        assert ratio.of.startswith("fcos_rt_")
        assert ratio.of.split()[1] == ratio.to.split()[1]


def test_what_a_busy_machine_leaves_is_said(report: Results) -> None:
    busy = replace(report, other_load=1.5)
    assert "Verdict: idle enough to compare." in lines(QUESTION, report)
    said = shown(busy)
    assert "a busy machine, what its intervals do not tell is open: other work kept 1.5" in said
    assert "Speed of ONNX Runtime by that of eager" in said
    twins = report_of(
        row("fcos_rt_nano", "onnxruntime", 3.0), row("fcos_e2e_nano", "onnxruntime", 3.0)
    )
    first = next(iter(QUESTION.conclusions(twins)))
    assert "do not tell which is faster" in first and "×" not in first


def test_nothing_of_the_host_is_told(report: Results, tmp_path: Path) -> None:
    for text in (report.to_text(), markdown(QUESTION, report, "a.png")):
        assert platform.node() not in text.replace(report.environment["processor"], "")
        for path in (Path.cwd(), Path.home(), tmp_path):
            assert str(path) not in text


def test_markdown_tells_the_numbers_of_the_records(report: Results) -> None:
    header = QUESTION.tables(report)[0].header
    text = markdown(QUESTION, report, "picture.png")
    lines = [line for line in text.splitlines() if line.startswith("| fcos_")]
    rows = detectors(report)
    assert len(lines) == len(rows) == 24
    for line, record in zip(lines, rows, strict=True):
        state = record.state
        cells = dict(zip(header, (c.strip() for c in line.strip("|").split("|")), strict=True))
        assert (cells["model"], cells["weights"]) == (state.model, state.training)
        assert cells["engine"].removesuffix("!") == NAMES[state.engine][1]
        assert float(cells["FPS"]) == pytest.approx(record.summary.fps, abs=0.051)
        assert float(cells["p50"]) == pytest.approx(record.summary.p50, abs=0.51)
        assert cells["p90"] == cells["p99"] == cells["limit"] == cells["RAM"] == "–"
        assert cells["file"] == state.sha256[:12]
        assert cells["AP"] == ("–" if state.ap is None else "71.2")
        assert cells["AP50"] == ("–" if state.ap is None else "94.6")
        assert cells["stages"] == "10/60/30"
    assert "![Benchmark](picture.png)" in text and "fcos_x" in text


@pytest.mark.parametrize(("calls", "shown_of"), [(12, "50"), (99, "50 90"), (100, "50 90 99")])
def test_figures_are_shown_where_they_are_known(calls: int, shown_of: str) -> None:
    """And percentiles only of the calls that they need."""
    record, bare = row("fcos_rt_nano", "onnxruntime", 1.0)
    figures = {**record.figures, "share_of_limit": 0.75, "engine_rss_mb": 34.4}
    record = replace(record, figures=figures, times=times_of(1.0, 8.0, 2.0, rounds=calls))
    bare = replace(bare, times=times_of(8.0, rounds=calls))
    (table,) = QUESTION.tables(report_of([record, bare]))
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert (cells["limit"], cells["RAM"]) == ("75", "34")
    found = [percent for percent in ("50", "90", "99") if cells[f"p{percent}"] != "–"]
    assert found == shown_of.split()


def test_a_wide_spread_is_flagged(report: Results) -> None:
    calm = row("fcos_e2e_nano", "eager_timing", 1.0)
    times = (calm[0].times * np.linspace(1, 2, 12)[:, None]).astype(np.int64)
    wild = report_of([replace(calm[0], times=times)])
    assert "eager, timing!" in shown(wild) and "timing!" not in shown(report_of(calm))
    assert "distrust" not in shown(report)
    assert "! 1 of 1 rows distrust themselves" in shown(wild)


def test_files_are_written(report: Results, tmp_path: Path) -> None:
    check_written(QUESTION, report, tmp_path / "new")

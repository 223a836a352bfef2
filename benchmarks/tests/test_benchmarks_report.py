"""Reports: every column, the same numbers everywhere, nothing about the host."""

import hashlib
import io
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from nmsfree.evaluation.evaluate import Metrics
from nmsfree.spec import ModelSpec, NmsSpec
from nmsfree_benchmarks.machine.environment import available_cores, describe, hardware
from nmsfree_benchmarks.machine.measure import STAGES, Times
from nmsfree_benchmarks.page.table import conclusions
from nmsfree_benchmarks.record.file import to_text
from nmsfree_benchmarks.roofline.peaks import Peaks
from nmsfree_benchmarks.table.report import write
from nmsfree_benchmarks.table.results import Report
from nmsfree_benchmarks.table.rows import CPU_ENGINES, ENGINES, Row
from nmsfree_benchmarks.table.suite import with_limit
from nmsfree_benchmarks.table.tables import HEADER, limit_cell, markdown, markdown_cells, show

MS = 1_000_000


def times_of(*stages: float, rounds: int = 12) -> Times:
    """The same milliseconds of each stage in every round, plus a little."""
    jitter = np.arange(rounds)[:, None] * 0.01
    times: Times = ((np.array([stages]) + jitter) * MS).astype(np.int64)
    return times


def make_row(name: str, engine: str, head: str, scale: float, *, trained: bool = True) -> Row:
    classes = 10 if trained else 80
    side = 256 if trained else 512
    onnx = engine == "onnxruntime"
    return Row(
        engine=engine,
        training="digits" if trained else "untrained",
        spec=ModelSpec(
            name=name,
            head="o2m" if head == "o2m" else "o2o",
            height=side,
            width=side,
            batch=1,
            class_names=tuple(map(str, range(classes))),
            category_ids=tuple(range(classes)),
            nms=NmsSpec() if head == "o2m" else None,
        ),
        sha256=hashlib.sha256(f"{name} {engine}".encode()).hexdigest(),
        times=times_of(scale, 8 * scale, 2 * scale),
        in_graph=times_of(scale) if onnx else None,
        bare=times_of(8 * scale) if onnx else None,
        nms_candidates=1234.0 if head == "o2m" else None,
        metrics=Metrics(0.7123, 0.9456, 0.8, 0.5, 0.6, None, 0.75) if trained else None,
        ap_images=300 if trained else 0,
    )


@pytest.fixture(scope="module")
def report() -> Report:
    rows = [
        make_row(f"fcos_{model}_{size}", engine, head, scale * (0.5 if model == "e2e" else 1) + i)
        if size == "nano"
        else make_row(f"fcos_{model}_{size}", engine, head, scale * 30 + i, trained=False)
        for size in ("nano", "r18_3x")
        for model, head in (("rt", "o2m"), ("o2o", "o2o"), ("e2e", "o2o"))
        for i, (engine, scale) in enumerate(zip(CPU_ENGINES, (3.0, 3.2, 2.5, 1.0), strict=True))
    ]
    return Report("20260102T030405Z", describe(2), False, tuple(rows), {"fcos_x": "no file"}, 9.87)


def content_of(report: Report) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(to_text(report.results()))
    return content


def rows_of(report: Report) -> list[dict[str, Any]]:
    """The records that are rows of the table."""
    records = content_of(report)["records"]
    return [r for r in records if r["parameters"]["call"] == "detector"]


def test_json_has_every_column_of_every_row(report: Report) -> None:
    rows = rows_of(report)
    assert len(rows) == 24
    for row, source in zip(rows, report.rows, strict=True):
        subject, shares = row["subject"], [row["figures"][f"{stage}_share"] for stage in STAGES]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert row["fps"] == pytest.approx(1000 / row["p50_ms"], rel=1e-3)
        assert row["p50_ms"] <= row["worst_ms"]
        assert subject["sha256"] == source.sha256
        assert subject["engine"] == source.engine
        assert (subject["nms"] is None) == (source.spec.nms is None)
        assert (subject["ap"] is None) == (subject["training"] == "untrained")
        assert subject["ap"] is None or 0 <= subject["ap"] <= subject["ap50"] <= 1


def test_raw_times_give_the_percentiles_again(report: Report) -> None:
    for row in content_of(report)["records"]:
        assert {len(values) for values in row["raw_ns"].values()} == {row["timed_calls"]}
        totals = np.sum(list(row["raw_ns"].values()), axis=0) / 1e6
        assert np.median(totals) == pytest.approx(row["p50_ms"], abs=1e-3)
        assert row["p90_ms"] is row["p99_ms"] is None  # of twelve calls


@pytest.mark.parametrize(("calls", "shown_of"), [(12, "50"), (99, "50 90"), (100, "50 90 99")])
def test_tables_leave_percentiles_of_few_calls_out(
    report: Report, calls: int, shown_of: str
) -> None:
    row = replace(report.rows[0], times=times_of(1.0, 8.0, 1.0, rounds=calls))
    cells = dict(zip(HEADER, markdown_cells(row), strict=True))
    found = [percent for percent in ("50", "90", "99") if cells[f"p{percent} ms"] != "–"]
    assert found == shown_of.split()


def test_facts_are_those_of_the_table(report: Report) -> None:
    facts = content_of(report)["facts"]
    p50 = {(r["subject"]["model"], r["subject"]["engine"]): r["p50_ms"] for r in rows_of(report)}
    assert len(facts["onnxruntime_speedup"]) == 6
    for model, value in facts["onnxruntime_speedup"].items():
        expected = p50[model, "eager_timing"] / p50[model, "onnxruntime"]
        assert value == pytest.approx(expected, rel=1e-3)
    assert facts["ap_gap"] == {"fcos_o2o_nano": 0, "fcos_e2e_nano": 0}
    for value in facts["detector_overhead"].values():
        assert value == pytest.approx(11 / 8, rel=0.01)
    for model, value in facts["onnxruntime_postprocess_ms"].items():
        assert value == pytest.approx(p50[model, "onnxruntime"] * 3 / 11, rel=0.02)


def test_overhead_is_that_of_onnx_runtime(report: Report) -> None:
    """Other engines have a bare call, too."""
    first = next(row for row in report.rows if row.engine == "onnxruntime")
    other = replace(first, engine="openvino", bare=times_of(4.0))
    wanted = report.results().facts["detector_overhead"][first.spec.name]
    found = replace(report, rows=(*report.rows, other)).results().facts["detector_overhead"]
    assert found[first.spec.name] == wanted
    assert f"{first.spec.name} {wanted:.3f} ×" in markdown(report)


def test_other_engines_stand_beside_fp32_in_onnx_runtime(report: Report) -> None:
    first = next(row for row in report.rows if row.engine == "onnxruntime")
    int8 = replace(first, engine="openvino_int8", times=(first.times // 2), bare=times_of(2.0))
    found = replace(report, rows=(*report.rows, int8))
    facts = found.results().facts["speed_beside_fp32"]
    assert facts == {f"{first.spec.name} openvino_int8": pytest.approx(2.0, rel=1e-3)}
    (ratio,) = [r for r in found.results().ratios if r.meaning.startswith("FP32")]
    assert ratio.meaning == "FP32 in ONNX Runtime by OpenVINO, INT8"
    assert (ratio.of, ratio.to) == (first.name, int8.name)
    assert ratio.interval.value == pytest.approx(2.0, rel=1e-3)
    line = f"{first.spec.name}, times the speed of FP32 in ONNX Runtime (95 %): OpenVINO, INT8 2.0"
    assert line in markdown(found)
    assert any("OpenVINO, INT8 has 2.00 to 2.00 ×" in c for c in conclusions(found.results()))


def test_limit_and_memory_are_told_where_they_are_known(report: Report) -> None:
    row = replace(
        next(row for row in report.rows if row.engine == "onnxruntime"),
        bare=times_of(8.0, rounds=1),
        limit_ms=6.0,
        memory={"peak_rss_mb": 200.0, "engine_rss_mb": 34.4},
    )
    assert row.share_of_limit == pytest.approx(0.75)
    eager = replace(report.rows[0], limit_ms=11.0)
    assert eager.share_of_limit == pytest.approx(11.0 / eager.summary.p50)
    cells = dict(zip(HEADER, markdown_cells(row), strict=True))
    assert (cells["limit %"], cells["RAM MB"]) == ("75", "34")
    record = next(row.records())
    assert record.figures["share_of_limit"] == 0.75 and record.figures["engine_rss_mb"] == 34.4
    assert dict(zip(HEADER, markdown_cells(report.rows[0]), strict=True))["RAM MB"] == "–"
    beaten = replace(row, limit_ms=8.5)
    assert beaten.share_of_limit is None
    assert dict(zip(HEADER, markdown_cells(beaten), strict=True))["limit %"] == "–"
    figures = next(beaten.records()).figures
    assert figures["limit_ms"] == 8.5 and figures["share_of_limit"] is None
    assert "faster than" in figures["share_of_limit_is_empty"]
    assert limit_cell(1.0) == "100" and limit_cell(1.1) == limit_cell(None) == "–"


def test_a_limit_needs_the_peak_of_its_arithmetic(report: Report) -> None:
    row = report.rows[0]
    peaks = Peaks({"fp32": 1e9}, ((1, 1e9),))
    assert with_limit(row, peaks) is row  # no graph to count
    bf16 = replace(row, graph=Path("none.onnx"), state={"precision": "bf16"})
    assert with_limit(bf16, peaks) is bf16


def test_a_noisy_run_ranks_nothing(report: Report) -> None:
    assert "Verdict: quiet enough to compare." in markdown(report)
    noisy = replace(report, other_load=1.5)
    for text in (markdown(noisy), shown(noisy)):
        assert "Verdict: too noisy to rank: other work kept 1.5 cores busy" in text
        assert "Speed of ONNX Runtime by that of eager" not in text
        assert "by the bare ONNX Runtime call" not in text
        assert "AP without NMS minus AP of one-to-many" in text


def shown(report: Report) -> str:
    console = Console(width=300, record=True, file=io.StringIO())
    show(report, console)
    return console.export_text()


def test_ratios_compare_what_belongs_together(report: Report) -> None:
    p50 = {record["name"]: record["p50_ms"] for record in content_of(report)["records"]}
    ratios = content_of(report)["ratios"]
    assert {r["meaning"] for r in ratios} == {
        "eager by ONNX Runtime",
        "Detector by bare call",
        "with NMS by without",
    }
    for ratio in ratios:
        assert ratio["value"] == pytest.approx(p50[ratio["of"]] / p50[ratio["to"]], rel=1e-3)
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
    with_nms = [r for r in ratios if r["meaning"] == "with NMS by without"]
    assert len(with_nms) == 2 * 2 * 4  # sizes, NMS-free models, engines
    for ratio in with_nms:
        assert ratio["of"].startswith("fcos_rt_")
        assert ratio["of"].split()[1] == ratio["to"].split()[1]


def test_nothing_of_the_host_is_told(report: Report, tmp_path: Path) -> None:
    for text in (to_text(report.results()), markdown(report)):
        assert platform.node() not in text.replace(report.environment["processor"], "")
        assert str(Path.cwd()) not in text
        assert str(Path.home()) not in text
        assert str(tmp_path) not in text


def test_markdown_tells_the_numbers_of_the_json(report: Report) -> None:
    text = markdown(report, "picture.png")
    rows = rows_of(report)
    lines = [line for line in text.splitlines() if line.startswith("| fcos_")]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        subject = row["subject"]
        cells = dict(zip(HEADER, (c.strip() for c in line.strip("|").split("|")), strict=True))
        assert cells["model"] == subject["model"]
        assert cells["size"] == "×".join(map(str, subject["size"]))
        assert cells["engine"] == ENGINES[subject["engine"]]
        assert float(cells["FPS"]) == pytest.approx(row["fps"], abs=0.051)
        assert float(cells["p50 ms"]) == pytest.approx(row["p50_ms"], abs=0.051)
        assert cells["p90 ms"] == cells["p99 ms"] == "–"
        assert cells["file"] == f"`{subject['sha256'][:12]}`"
        if subject["ap"] is None:
            assert cells["AP"] == cells["AP50"] == "–"
        else:
            assert float(cells["AP"]) == pytest.approx(subject["ap"] * 100, abs=0.051)
            assert float(cells["AP50"]) == pytest.approx(subject["ap50"] * 100, abs=0.051)
        network = float(cells["network"].removesuffix(" %"))
        assert network == pytest.approx(row["figures"]["network_share"] * 100, abs=0.06)
    assert "![Latency by stage](picture.png)" in text
    assert "fcos_x" in text


def test_a_wide_spread_is_flagged(report: Report) -> None:
    calm = report.rows[0]
    wild = replace(calm, times=(calm.times * np.linspace(1, 2, 12)[:, None]).astype(np.int64))
    assert calm.summary.trusted
    assert not wild.summary.trusted
    assert f"{ENGINES[wild.engine]}!" in markdown_cells(wild)
    assert ENGINES[calm.engine] in markdown_cells(calm)
    assert "distrust" not in markdown(report)
    assert "! 1 of 1 rows distrust themselves" in markdown(replace(report, rows=(wild,)))


@pytest.mark.parametrize("width", [100, 120])
def test_the_terminal_table_fits(report: Report, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    show(report, console)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for row in report.rows:
        p50 = row.summary.p50
        assert (f"{p50:.1f}" if p50 < 100 else f"{p50:.0f}") in text


def test_files_are_written(report: Report, tmp_path: Path) -> None:
    data, table, picture = write(report, tmp_path / "new")
    assert [p.name for p in (data, table, picture)] == [
        f"{report.stamp}.{kind}" for kind in ("json", "md", "png")
    ]
    assert json.loads(data.read_text(encoding="utf-8"))["stamp"] == report.stamp
    assert picture.name in table.read_text(encoding="utf-8")
    pixels = cv2.imread(str(picture))
    assert pixels is not None
    assert min(pixels.shape[:2]) > 600


def test_cores_are_counted() -> None:
    assert available_cores() >= 1


def test_a_gpu_is_named_where_it_ran_the_models() -> None:
    here = {"processor": "EPYC", "device": "cpu", "gpu": "RTX 4060"}
    assert hardware(here) == "EPYC (cpu)"
    assert hardware(here | {"device": "cuda:1"}) == "RTX 4060 (cuda:1), EPYC"
    assert hardware(here | {"device": "openvino", "gpu": None}) == "EPYC (openvino)"


def test_on_a_gpu_rows_stand_beside_fp32_in_onnx_runtime_there(report: Report) -> None:
    first = next(row for row in report.rows if row.engine == "onnxruntime")
    plain = replace(first, engine="onnxruntime_cuda")
    half = replace(first, engine="tensorrt_rtx_fp16", times=first.times // 4)
    results = replace(report, rows=(plain, half)).results()
    assert results.facts["speed_beside_fp32"] == {half.name: pytest.approx(4.0, rel=1e-3)}
    assert first.spec.name in results.facts["detector_overhead"]
    (ratio,) = [r for r in results.ratios if r.is_speed]
    assert (ratio.of, ratio.to) == (plain.name, half.name)

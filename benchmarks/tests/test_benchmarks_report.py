"""Reports: every column, the same numbers everywhere, nothing about the host."""

import hashlib
import io
import json
import platform
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from nmsfree.evaluate import Metrics
from nmsfree.spec import ModelSpec, NmsSpec
from nmsfree_benchmarks.environment import available_cores, describe
from nmsfree_benchmarks.measure import STAGES, Times
from nmsfree_benchmarks.report import to_text, write
from nmsfree_benchmarks.results import ENGINES, Report, Row
from nmsfree_benchmarks.tables import HEADER, markdown, markdown_cells, show

MS = 1_000_000
COLUMNS = {
    *("model", "size", "engine", "precision", "fps", "p50_ms", "p90_ms", "p99_ms"),
    *("share", "AP", "AP50", "file_hash"),
}


def times_of(*stages: float, rounds: int = 12) -> Times:
    """The same milliseconds of each stage in every round, plus a little."""
    jitter = np.arange(rounds)[:, None] * 0.01
    return ((np.array([stages]) + jitter) * MS).astype(np.int64)


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
        for i, (engine, scale) in enumerate(zip(ENGINES, (3.0, 3.2, 2.5, 1.0), strict=True))
    ]
    return Report("20260102T030405Z", describe(2), False, tuple(rows), {"fcos_x": "no file"}, 9.87)


def test_json_has_every_column_of_every_row(report: Report) -> None:
    content = json.loads(to_text(report))
    assert len(content["rows"]) == 24
    for row, source in zip(content["rows"], report.rows, strict=True):
        assert row.keys() >= COLUMNS
        assert set(row["share"]) == set(STAGES)
        assert sum(row["share"].values()) == pytest.approx(1, abs=1e-3)
        assert row["fps"] == pytest.approx(1000 / row["p50_ms"], rel=1e-3)
        assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert re.fullmatch(r"[0-9a-f]{12}", row["file_hash"])
        assert source.sha256.startswith(row["file_hash"])
        assert (row["AP"] is None) == (row["training"] == "untrained")
        assert row["AP"] is None or 0 <= row["AP"] <= row["AP50"] <= 1


def test_raw_times_give_the_percentiles_again(report: Report) -> None:
    for row in json.loads(to_text(report))["rows"]:
        raw = row["raw_us"]
        assert {len(values) for values in raw.values()} == {row["timed_calls"]}
        names = ("preprocess", "graph", "to_source") if "graph" in raw else STAGES
        totals = np.sum([raw[name] for name in names], axis=0) / 1000
        for key, percent in (("p50_ms", 50), ("p90_ms", 90), ("p99_ms", 99)):
            assert np.percentile(totals, percent) == pytest.approx(row[key], abs=0.003)


def test_ratios_are_those_of_the_table(report: Report) -> None:
    content = json.loads(to_text(report))
    p50 = {(row["model"], row["engine"]): row["p50_ms"] for row in content["rows"]}
    speedup = content["facts"]["onnxruntime_speedup"]
    assert len(speedup) == 6
    for model, value in speedup.items():
        expected = p50[model, "eager_timing"] / p50[model, "onnxruntime"]
        assert value == pytest.approx(expected, rel=1e-3)
    assert content["facts"]["ap_gap"] == {"fcos_o2o_nano": 0, "fcos_e2e_nano": 0}
    for value in content["facts"]["detector_overhead"].values():
        assert value == pytest.approx(11 / 8, rel=0.01)
    for model, value in content["facts"]["onnxruntime_postprocess_ms"].items():
        assert value == pytest.approx(p50[model, "onnxruntime"] * 3 / 11, rel=0.02)


def test_nothing_of_the_host_is_told(report: Report, tmp_path: Path) -> None:
    for text in (to_text(report), markdown(report)):
        assert platform.node() not in text.replace(report.environment["processor"], "")
        assert str(Path.cwd()) not in text
        assert str(Path.home()) not in text
        assert str(tmp_path) not in text


def test_markdown_tells_the_numbers_of_the_json(report: Report) -> None:
    text = markdown(report, "picture.png")
    content = json.loads(to_text(report))
    lines = [line for line in text.splitlines() if line.startswith("| fcos_")]
    assert len(lines) == len(content["rows"])
    for line, row in zip(lines, content["rows"], strict=True):
        cells = dict(zip(HEADER, (c.strip() for c in line.strip("|").split("|")), strict=True))
        assert cells["model"] == row["model"]
        assert cells["size"] == "×".join(map(str, row["size"]))
        assert cells["engine"] == row["engine_label"]
        assert float(cells["FPS"]) == pytest.approx(row["fps"], abs=0.051)
        for key in ("p50", "p90", "p99"):
            assert float(cells[f"{key} ms"]) == pytest.approx(row[f"{key}_ms"], abs=0.051)
        assert cells["file"] == f"`{row['file_hash']}`"
        if row["AP"] is None:
            assert cells["AP"] == cells["AP50"] == "–"
        else:
            assert float(cells["AP"]) == pytest.approx(row["AP"] * 100, abs=0.051)
            assert float(cells["AP50"]) == pytest.approx(row["AP50"] * 100, abs=0.051)
        network = float(cells["network"].removesuffix(" %"))
        assert network == pytest.approx(row["share"]["network"] * 100, abs=0.06)
    assert "![Latency by stage](picture.png)" in text
    assert "fcos_x" in text


def test_a_wide_spread_is_flagged(report: Report) -> None:
    calm = report.rows[0]
    wild = replace(calm, times=(calm.times * np.linspace(1, 2, 12)[:, None]).astype(np.int64))
    assert not calm.to_json()["spread"] > 0.1
    assert wild.to_json()["trusted"] is False
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
        assert row.file_hash in text
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

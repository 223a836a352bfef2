"""The frontier: its rules on made records, and a tiny run."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmarks_sample as sample
import numpy as np
import pytest
from benchmarks_sample import shown_in, subject_of

from nmsfree_benchmarks.harness.engines import ENGINES, Engine
from nmsfree_benchmarks.harness.records import Record, Results
from nmsfree_benchmarks.harness.statistics import Interval
from nmsfree_benchmarks.harness.weights import open_weights
from nmsfree_benchmarks.questions.frontier import (
    advise,
    conclusions,
    gap_interval,
    pareto,
    points,
    ratios,
    scaled,
    tables,
    variants,
    what,
)

STEADY = np.linspace(0.99, 1.01, 12)
TENTHS = np.linspace(-0.001, 0.001, 10)


def make(
    ms: float, ap: float, engine: str = "onnxruntime", file: str = "fp32", side: int = 256
) -> list[Record]:
    """The two records of a variant of one model."""
    name = f"nano {engine} {file} {side}x{side}"
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    about = {"size": (side, side), "sha256": sha256, "engine": engine, "precision": file}
    subject = subject_of("nano", **about, ap=ap, ap50=ap)
    times = (ms * 1e6 * STEADY[:, None]).astype(np.int64)
    same = {"file": file, "deployed_size": side == 256}
    figures = {"engine_rss_mb": 30.0, "ap_without_tenths": (ap + TENTHS).tolist()}
    return [
        Record(name, same | {"call": "detector"}, times, figures=figures, subject=subject),
        Record(f"{name} bare", same | {"call": "bare"}, times, subject=subject),
    ]


def results_of(*made: list[Record]) -> Results:
    records = tuple(record for pair in made for record in pair)
    found = sample.results_of(kind="frontier", records=records, settings={})
    return replace(found, ratios=tuple(ratios(found)))


FULL = make(10, 0.770)
INT8 = make(9.8, 0.767, file="int8")
OPENVINO = make(5, 0.770, "openvino")
BF16 = make(4, 0.769, "openvino_bf16")
SMALL = make(6, 0.700, side=192)
LARGE = make(20, 0.790, side=320)


def test_advice_is_read_from_the_figures() -> None:
    said = list(conclusions(results_of(FULL, INT8, OPENVINO, BF16, SMALL, LARGE)))
    assert said == [
        "nano: INT8 in ONNX Runtime is not worth it here: 1.02 × the speed, −0.3 AP.",
        "nano: FP32 in OpenVINO: 2.00 × the speed, ±0.0 AP: take it.",
        "nano: bf16 in OpenVINO: 2.50 × the speed, −0.1 AP: take it.",
        "nano: 192 × 192 input: 1.67 × the speed, −7.0 AP: take it only if the AP can be spared.",
        "nano: 320 × 320 input: 0.50 × the speed, +2.0 AP: take it if the time can be spared.",
        "On the frontier by medians and AP as measured, fastest first: nano openvino_bf16 fp32 "
        "256x256, nano openvino fp32 256x256, nano onnxruntime fp32 320x320.",
    ]


def test_neighbours_on_the_frontier_that_cannot_be_told_apart_are_named() -> None:
    twin = make(5, 0.771, "openvino_bf16")
    twin[0].times[:] = twin[0].times[::-1] + 1000  # now slower, now faster than the other
    said = list(conclusions(results_of(FULL, OPENVINO, twin)))
    assert said[-1].endswith(
        "Of the same speed, as far as the intervals tell: nano openvino fp32 256x256 and nano "
        "openvino_bf16 fp32 256x256."
    )


@pytest.mark.parametrize(
    ("speed", "gap", "said"),
    [
        ((1.5, 1.05, 1.9), (0, 0, 0), "x: 1.50 × the speed, ±0.0 AP: too close to say, the speed"
         " is 1.05 … 1.90 ×"),
        ((1.5, 1.4, 1.6), (-0.02, -0.05, 0.01), "x: 1.50 × the speed, −2.0 AP (−5.0 … +1.0): "
         "too close to say, measure AP on more images"),
        ((1.5, 1.4, 1.6), (-0.003, -0.02, 0.01), "x: 1.50 × the speed, −0.3 AP (−2.0 … +1.0): "
         "too close to say, measure AP on more images"),
        ((1.5, 1.4, 1.6), (0.01,), "x: 1.50 × the speed, +1.0 AP (–): too close to say, measure AP "
         "on more images"),
        ((1.5,), (0, 0, 0), "x: 1.50 × the speed, ±0.0 AP: undecided, under 10 rounds were timed"),
        ((0.5, 0.4, 0.6), (0.02, -0.01, 0.05), "x is not worth it here: 0.50 × the speed, +2.0 AP"),
    ],
)  # fmt: skip
def test_what_is_unsure_is_not_advised(
    speed: tuple[float, ...], gap: tuple[float, ...], said: str
) -> None:
    assert advise("x", Interval(*speed), Interval(*gap)) == said


def test_the_frontier_leaves_out_what_is_slower_and_no_better() -> None:
    records = [pair[0] for pair in (FULL, INT8, OPENVINO, BF16, SMALL, LARGE)]
    assert [r.name for r in pareto(records)] == [BF16[0].name, OPENVINO[0].name, LARGE[0].name]
    twin = replace(BF16[0], name="twin")
    assert [r.name for r in pareto([BF16[0], twin])] == [BF16[0].name]


def test_a_gap_is_as_sure_as_the_images_allow() -> None:
    same = gap_interval(0.7, 0.6, (0.7 + TENTHS).tolist(), (0.6 + TENTHS).tolist())
    assert same.high - same.low == pytest.approx(0)
    # differences d: error² = 9/10 · Σ(d - mean)²
    apart = gap_interval(0.7, 0.6, (0.7 + TENTHS).tolist(), [0.6] * 10)
    error = np.sqrt(0.9 * (TENTHS**2).sum())
    assert (apart.value, apart.low) == pytest.approx((0.1, 0.1 - 2.262 * error))
    assert gap_interval(0.7, 0.6, [], []) == Interval(pytest.approx(0.1))  # type: ignore[arg-type]


def test_points_have_a_sign() -> None:
    assert [points(v) for v in (0.012, -0.003, 0.0004, -0.0004)] == ["+1.2", "−0.3", "±0.0", "±0.0"]


def test_the_names_of_changes() -> None:
    found = [what(pair[0], FULL[0]) for pair in (INT8, OPENVINO, BF16, SMALL)]
    names = ["INT8 in ONNX Runtime", "FP32 in OpenVINO", "bf16 in OpenVINO", "192 × 192 input"]
    assert found == names
    assert what(make(1, 0.7, "openvino_bf16", "int8")[0], FULL[0]) == "INT8 in OpenVINO bf16"


def test_sizes_are_in_steps_of_the_network() -> None:
    assert scaled((256, 256), (0.75, 1, 1.25, 1.5)) == [
        (192,) * 2,
        (256,) * 2,
        (320,) * 2,
        (384,) * 2,
    ]
    assert scaled((64, 96), (0.5, 1, 1.01)) == [(32, 64), (64, 96)]


def test_one_file_serves_several_engines(tiny: Path) -> None:
    weights = open_weights(tiny / "weights" / "fcos_e2e_nano.safetensors", "none")
    found = variants([weights], ["onnxruntime", "openvino", "tensorrt_rtx"], 1, (1.0, 2.0))
    names = [(v.file_name.removeprefix("fcos_e2e_nano-"), v.engine.key) for v in found]
    three = ("onnxruntime", "openvino", "tensorrt_rtx")
    assert names == [
        *(("fp32-64x64-batch1", engine) for engine in three),
        *(("fp16-64x64-batch1", engine) for engine in three),
        ("int8-cpu-64x64-batch1", "onnxruntime"),
        ("int8-cpu-64x64-batch1", "openvino"),
        ("int8-tensorrt-64x64-batch1", "tensorrt_rtx"),
        ("fp32-128x128-batch1", "onnxruntime"),
    ]


def test_the_table_fits_and_marks_the_frontier_of_its_model() -> None:
    best_of_all = make(1, 0.9)
    other = [
        replace(r, name=r.name.replace("nano", "big"), subject=replace(r.subject, model="big"))
        for r in best_of_all
        if r.subject is not None
    ]
    measured = results_of(FULL, INT8, make(4, 0.769, "openvino_bf16", "int8"), other)
    table = tables(measured)[0]
    wild = results_of(make(1234, 0.77), make(777, 0.7, "openvino_bf16", "int8"))
    for record in wild.records:
        record.times[::2] *= 2
    text = shown_in(100, table.rich(), tables(wild)[0].rich())
    assert "OpenVINO bf16!" in text
    assert "…" not in text
    assert [row[:3] for row in table.rows] == [
        ("fp32*", "ONNX Runtime", "256×256"),
        ("int8", "ONNX Runtime", "256×256"),
        ("int8*", "OpenVINO bf16", "256×256"),
    ]
    assert table.rows[1][6:9] == ("1.02 (1.02–1.02)", "76.7", "−0.3")


def test_a_run_leaves_its_files(
    ask: Any,
    left: Any,
    tiny: Path,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run with ONNX Runtime and an engine that is nowhere, FP32 and INT8."""
    engines = {
        "onnxruntime": ENGINES["onnxruntime"],
        "nowhere": Engine("nowhere", "Nowhere", "Nowhere", "cuda:99"),
    }
    monkeypatch.setattr("nmsfree_benchmarks.questions.frontier.ENGINES", engines)
    monkeypatch.setattr("nmsfree_export.options.PRECISIONS", ("fp32", "int8"))
    before = sorted((tiny / "data").rglob("*"))
    content = ask("frontier", *options, "--model=fcos_e2e_nano")
    assert sorted((tiny / "data").rglob("*")) == before
    read, _ = left(tmp_path / "out", content)
    assert read.kind == "frontier"
    assert read.command == (
        "nmsfree bench frontier --quick --threads 1 --seconds 0 --model fcos_e2e_nano"
    )
    assert read.skipped["Nowhere"].startswith("device is 'cuda:99', but")
    # random weights may lose too much to 8 bits, and are then refused with the reason
    files = [r.parameters["file"] for r in read.records if r.parameters["call"] == "detector"]
    refused = [name for name in read.skipped if "int8" in name]
    assert files + ["int8"] * len(refused) == ["fp32", "int8"]
    full = read.record("fcos_e2e_nano onnxruntime fp32 64x64")
    assert full.parts == ("preprocess", "engine", "to_source")
    assert full.subject is not None and full.subject.ap_images == 4
    assert full.figures["peak_rss_mb"] > full.figures["engine_rss_mb"] > 0

"""Throughput: streams that really run at once, the rule of saturation, and a tiny run."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmarks_sample as sample
import numpy as np
import pytest
from benchmarks_sample import subject_of
from numpy.typing import NDArray

from nmsfree.backends import CallableBackend, RawDetections
from nmsfree.detector import Detector
from nmsfree.spec import ModelSpec, NmsSpec
from nmsfree_benchmarks.harness.records import Record, Results
from nmsfree_benchmarks.questions.throughput import (
    Options,
    conclusions,
    curves,
    facts,
    ratios,
    run_window,
)

SPEC = ModelSpec("made", "o2o", 32, 32, None, ("a",), (1,))
STEADY = np.linspace(0.995, 1.005, 12)


def nothing_found(images: NDArray[np.uint8]) -> RawDetections:
    n = len(images)
    return RawDetections(
        np.zeros((n, 1), np.int32),
        np.zeros((n, 100, 4), np.float32),
        np.zeros((n, 100), np.float32),
        np.zeros((n, 100), np.int32),
    )


def pictures(count: int) -> list[NDArray[np.uint8]]:
    """Each of one grey value, its number."""
    return [np.full((32, 32, 3), i, np.uint8) for i in range(count)]


def test_streams_run_at_once_and_begin_with_pictures_of_their_own() -> None:
    gate = threading.Barrier(3)
    first = threading.local()
    began: list[int] = []

    def meet(images: NDArray[np.uint8]) -> RawDetections:
        """In its first call every stream waits for the two others."""
        if not hasattr(first, "done"):
            first.done = True
            began.append(int(images[0, 0, 0, 0]))
            gate.wait(timeout=20)
        return nothing_found(images)

    detector = Detector(CallableBackend(meet, SPEC))
    window = run_window(detector, pictures(5), batch=2, streams=3, seconds=0.01)
    assert sorted(began) == [0, 1, 2]
    assert window.images == 2 * len(window.calls_ns) >= 6
    assert window.elapsed_ns >= max(window.calls_ns)
    assert window.elapsed_ns >= 10_000_000


def test_a_stream_takes_all_pictures_in_turn() -> None:
    seen: list[list[int]] = []

    def look(images: NDArray[np.uint8]) -> RawDetections:
        seen.append(images[:, 0, 0, 0].tolist())
        return nothing_found(images)

    run_window(Detector(CallableBackend(look, SPEC)), pictures(3), 2, 1, 0.05)
    assert seen[:4] == [[0, 1], [1, 2], [2, 0], [0, 1]]


def test_what_fails_in_a_stream_is_raised() -> None:
    def fail(images: NDArray[np.uint8]) -> RawDetections:
        raise ValueError("broken engine")

    with pytest.raises(ValueError, match="broken engine"):
        run_window(Detector(CallableBackend(fail, SPEC)), pictures(1), 1, 2, 0.01)


def make(
    ms: float,
    streams: int = 1,
    batch: int = 1,
    model: str = "nano",
    spread: float = 1.0,
    **state: Any,
) -> Record:
    """A record of so many milliseconds an image."""
    nms = vars(NmsSpec()) if model == "nms" else None
    subject = subject_of(model, batch=batch, nms=nms, **state)
    times = (ms * 1e6 * (1 + spread * (STEADY - 1))[:, None]).astype(np.int64)
    load = {"batch": batch, "streams": streams, "threads": 1}
    figures = {"processor_ms_per_image": ms, "call_p50_ms": ms, "call_p99_ms": ms}
    return Record(f"{model} {batch} {streams}", load, times, figures=figures, subject=subject)


def results_of(records: list[Record]) -> Results:
    found = sample.results_of(kind="throughput", records=tuple(records), settings={"window_s": 0.5})
    return replace(found, ratios=tuple(ratios(found)))


RECORDS = [
    make(10),
    make(5.2, streams=2),
    make(5.1, streams=4),
    make(5.0, streams=8),
    make(8, batch=4),
    make(6, batch=16),
]


def test_saturation_is_the_smallest_load_near_the_best() -> None:
    said = list(conclusions(results_of(RECORDS)))
    assert said == [
        "nano, 1 engine thread: 2 streams reach 192 images/s, the best (8 streams) 200: saturated.",
        "nano, 1 engine thread: batch 16 reaches 167 images/s: not saturated within what was "
        "tried.",
        "nano at most: 200 images/s, batch 1, streams 8, engine threads 1.",
    ]
    first, second = facts(results_of(RECORDS))["saturation"]
    names = ("axis", "at", "best", "open_end")
    assert [first[name] for name in names] == ["streams", 2, 8, False]
    assert [second[name] for name in names] == ["batch", 16, 16, True]


def test_a_gpu_has_no_engine_threads() -> None:
    gpu = {"engine": "onnxruntime_cuda", "transfers": "in and out"}
    said = list(conclusions(results_of([make(10, **gpu), make(5, streams=2, **gpu)])))
    assert said[0] == (
        "nano, ONNX Runtime CUDA: 2 streams reach 200 images/s: not saturated within what was "
        "tried."
    )
    assert said[-1] == "nano at most: 200 images/s, batch 1, streams 2."
    options = Options(threads=2, device="tensorrt-rtx:1")
    assert options.engine_threads == [2]
    assert replace(options, device="openvino").engine_threads == [1, 2]


def test_what_may_be_worse_than_near_is_not_taken() -> None:
    """4 % slower in the median, and perhaps more than 5."""
    rough = [make(10), make(5.2, streams=2, spread=8), make(5.0, streams=4, spread=8)]
    (streams, _) = curves([make(10), make(5.2, streams=2), make(5.0, streams=4)])
    assert streams.at.parameters["streams"] == 2
    shuffled = [
        Record(r.name, r.parameters, r.times[order], r.parts, r.figures, r.subject)
        for r, order in zip(rough, (slice(None), slice(None), slice(None, None, -1)), strict=True)
    ]
    (streams, _) = curves(shuffled)
    assert streams.at.parameters["streams"] == 4


def test_under_ten_rounds_nothing_is_saturated() -> None:
    """The best is in the middle by its median, and nothing tells it from the last."""
    few = [replace(r, times=r.times[:9]) for r in (make(10), make(5, 2), make(5.1, 4))]
    (streams, _) = curves(few)
    assert streams.at is streams.best is few[1] and streams.open_end
    assert streams.said.endswith("undecided whether more gives more.")


def test_ratios_compare_equal_loads() -> None:
    records = [make(10), make(6, streams=2), make(12, model="nms"), make(9, 2, model="nms")]
    found = {
        (r.meaning, r.of, r.to): round(r.interval.value, 2) for r in ratios(results_of(records))
    }
    assert found == {
        ("time of an image by that of one at a time", "nano 1 2", "nano 1 1"): 0.6,
        ("time of an image by that of one at a time", "nms 1 2", "nms 1 1"): 0.75,
        ("with NMS by without", "nms 1 1", "nano 1 1"): 1.2,
        ("with NMS by without", "nms 1 2", "nano 1 2"): 1.5,
    }


def test_a_run_leaves_its_files(ask: Any, left: Any, options: list[str], tmp_path: Path) -> None:
    read, said = left(tmp_path / "out", ask("throughput", *options))
    assert read.kind == "throughput"
    assert read.command == "nmsfree bench throughput --quick --threads 1 --seconds 0"
    loads = [(r.parameters["batch"], r.parameters["streams"]) for r in read.records]
    assert loads == [(1, 1), (4, 1), (16, 1), (1, 2), (1, 4)]
    for record in read.records:
        assert record.figures["images"] % record.parameters["batch"] == 0
        assert record.figures["processor_ms_per_image"] > 0
        assert record.state.batch == record.parameters["batch"]
    assert list(read.skipped) == ["fcos_rt_nano"]
    assert "## fcos_e2e_nano, 1 engine thread" in said

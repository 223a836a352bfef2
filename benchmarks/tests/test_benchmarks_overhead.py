"""Overhead: stages that are the runtime's own, targets by rule, and a tiny run."""

import itertools
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
from nmsfree.images import read_image
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.harness.pictures import make_scenes
from nmsfree_benchmarks.harness.records import Record, Results
from nmsfree_benchmarks.harness.timer import Stopwatch
from nmsfree_benchmarks.questions.overhead import (
    PARTS,
    StagedDetector,
    conclusions,
    facts,
    preprocess_detector,
    ratios,
    staged_call,
)

SPEC = ModelSpec("made", "o2o", 64, 64, 1, ("a", "b"), (1, 2), top_k=3)
STEADY = np.linspace(0.995, 1.005, 12)


def two_boxes(images: NDArray[np.uint8]) -> RawDetections:
    return RawDetections(
        np.array([[2]], np.int32),
        np.array([[[1, 2, 30, 40], [5, 5, 20, 64], [0, 0, 1, 1]]], np.float32),
        np.array([[0.9, 0.8, 0.01]], np.float32),
        np.array([[1, 0, 0]], np.int32),
    )


def scene(side: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_the_staged_detector_says_what_the_detector_says() -> None:
    backend, picture = CallableBackend(two_boxes, SPEC), scene(100)
    staged, plain = StagedDetector(backend, Stopwatch()), Detector(backend)
    for ours, theirs in zip(
        (staged(picture), staged(picture, classes=["a"])),
        (plain(picture), plain(picture, classes=["a"])),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.xyxy, theirs.xyxy)
        np.testing.assert_array_equal(ours.confidence, theirs.confidence)
        np.testing.assert_array_equal(ours.class_id, theirs.class_id)


def test_every_stage_is_between_its_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock counts how often it is read: every stage is one interval, Python is four."""
    clock = itertools.count()
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(clock))
    detector = StagedDetector(CallableBackend(two_boxes, SPEC), Stopwatch())
    parts = dict(zip(PARTS, staged_call(detector)(scene()), strict=True))
    assert parts == {"preprocess": 1, "engine": 1, "map_back": 1, "python": 4}


def test_scenes_fill_every_size_and_their_files_hold_them(tmp_path: Path) -> None:
    (made,) = make_scenes([scene(256)], (300, 500), tmp_path)
    assert made.image.shape == (300, 500, 3)
    np.testing.assert_array_equal(made.image[:256, :256], scene(256))
    np.testing.assert_array_equal(made.image[256:, 256:], scene(256)[:44, :244])
    assert {suffix: path.name for suffix, path in made.files.items()} == {
        ".jpg": "500×300-0.jpg",
        ".png": "500×300-0.png",
    }
    np.testing.assert_array_equal(read_image(made.files[".png"]), made.image)
    assert read_image(made.files[".jpg"]).shape == made.image.shape


def test_preprocessing_alone_needs_no_network() -> None:
    inputs, _ = preprocess_detector().preprocess([scene(100)])
    assert inputs.shape == (1, 512, 736, 3)


def results_of(
    whole: float,
    preprocess: float,
    spread: float = 1,
    engine: str = "onnxruntime",
) -> Results:
    """A run on 640×480 whose bare call takes 10 ms."""
    subject = subject_of("fcos_e2e_nano", engine=engine)

    def record(name: str, call: str, ms: float, turned: int) -> Record:
        wave = (1 + spread * (STEADY[::turned] - 1))[:, None]
        source = "1920×1080" if call == "preprocess" else "640×480"
        times = (ms * 1e6 * wave).astype(np.int64)
        of = None if call == "preprocess" else subject
        return Record(name, {"call": call, "source": source}, times, subject=of)

    records = (
        record("x", "detector", whole, 1),
        record("x bare", "bare", 10, -1),
        record("y", "preprocess", preprocess, 1),
    )
    burst = {"burst": {"fcos_e2e_nano": 1}}
    found = sample.results_of(kind="overhead", records=records, settings=burst)
    return replace(found, ratios=tuple(ratios(found)))


PREPROCESS = "preprocessing 1920×1080 → 512 × 736"
CALL = "fcos_e2e_nano, 640×480: Detector(image) by the bare call"


def test_targets_are_reached_or_missed_by_their_intervals() -> None:
    good, bad = (list(conclusions(results_of(*ms))) for ms in ((11, 1.2), (12, 1.8)))
    assert good == [
        f"Target reached: {PREPROCESS}: 1.20 ms (1.20 … 1.20), at most 1.5.",
        f"Target reached: {CALL}: 1.10 × (1.09 … 1.11), at most 1.15.",
    ]
    assert bad == [
        f"Target missed: {PREPROCESS}: 1.80 ms (1.80 … 1.80), at most 1.5.",
        f"Target missed: {CALL}: 1.20 × (1.19 … 1.21), at most 1.15.",
    ]
    assert [t["met"] for t in facts(results_of(12, 1.2))["targets"]] == [True, False]


def test_what_is_unsure_is_not_judged() -> None:
    close = results_of(11.5, 1.5, spread=10)
    assert [t["met"] for t in facts(close)["targets"]] == [None, None]
    assert all(line.startswith("Target undecided: ") for line in conclusions(close))


def test_another_engine_promised_nothing() -> None:
    said = conclusions(results_of(12, 1.2, engine="tensorrt_rtx"))
    assert list(said) == [
        "fcos_e2e_nano, 640×480, TensorRT-RTX: Detector(image) takes 1.200 (1.193 – 1.207) × the "
        "bare call.",
        f"Target reached: {PREPROCESS}: 1.20 ms (1.20 … 1.20), at most 1.5.",
    ]


def test_a_run_leaves_its_files(
    ask: Any, left: Any, options: list[str], tiny: Path, tmp_path: Path
) -> None:
    before = set((tiny / "work").glob("pictures-*"))  # of a run that other tests broke off
    read, _ = left(tmp_path / "out", ask("overhead", *options))
    assert read.kind == "overhead"
    assert read.command == "nmsfree bench overhead --quick --threads 1 --seconds 0"
    sources = ("256×256", "640×480", "1920×1080")
    kinds = ("detector", "bare", "decode", "decode")
    expected = [(kind, source) for source in sources for kind in kinds]
    found = [(r.parameters["call"], r.parameters["source"]) for r in read.records]
    assert sorted(found) == sorted([*expected, ("preprocess", "1920×1080")])
    assert read.records[0].parts == PARTS
    for record in read.where(call="decode"):
        assert record.figures["file_mb"] > 0 and record.subject is None
    assert [r.of for r in read.ratios] == [f"fcos_e2e_nano {source}" for source in sources]
    assert len(read.facts["targets"]) == 2
    assert not set((tiny / "work").glob("pictures-*")) - before

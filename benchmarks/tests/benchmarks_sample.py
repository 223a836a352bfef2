"""Small made-up results, to try what reads result files without measuring; a module of tests."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console

from nmsfree_benchmarks.harness.records import Ratio, Record, Results, State, read
from nmsfree_benchmarks.harness.run import write
from nmsfree_benchmarks.harness.timer import Times

MS = 1_000_000  # nanoseconds
ENVIRONMENT: dict[str, Any] = {
    "device": "cpu",
    "processor": "A processor",
    "cores": 2,
    "memory_gib": 8,
    "system": "Linux x86_64",
    "gpu": None,
    "fingerprint": "0123456789ab",
    "threads": 2,
    "python": "3.11.0",
    "busy_cores_before": 0.0,
    "versions": {"onnxruntime": "1.31.0", "numpy": "2.4.6"},
}


def times_of(milliseconds: float, calls: int = 40, spread: float = 0.02, seed: int = 0) -> Times:
    """Times [calls, 2] around a median, half of each in each part."""
    noise = np.random.default_rng(seed).normal(0, spread, calls)
    totals = milliseconds * MS * (1 + noise)
    times: Times = np.stack([totals / 2, totals / 2], axis=1).astype(np.int64)
    return times


def subject_of(model: str = "fcos_e2e_nano", **changes: Any) -> State:
    values: dict[str, Any] = {
        "model": model,
        "head": "o2o",
        "size": (256, 256),
        "classes": 10,
        "training": "digits",
        "sha256": "ab" * 32,
        "file_bytes": 5_000_000,
        "engine": "onnxruntime",
        "provider": "ONNX Runtime 1.31.0 CPU, threads 2",
        "precision": "fp32",
        "batch": 1,
        "threads": 2,
        "top_k": 100,
        "score_floor": 0.05,
        "nms": None,
        "ap": 0.77,
        "ap50": 0.92,
        "ap_images": 300,
    }
    return State(**(values | changes))


def record_of(name: str, milliseconds: float, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "parameters": {"objects": 4},
        "times": times_of(milliseconds),
        "parts": ("network", "rest"),
        "figures": {"peak_rss_mb": 120.5},
        "subject": subject_of(),
    }
    return Record(name, **(values | changes))


def results_of(**changes: Any) -> Results:
    """An undisturbed run of the kind "nms": one model twice, one of them twice as slow."""
    fast, slow = record_of("free", 5.0), record_of("nms", 10.0, times=times_of(10.0, seed=1))
    values: dict[str, Any] = {
        "kind": "nms",
        "stamp": "20260102T030405Z",
        "command": "nmsfree bench nms --quick",
        "quick": True,
        "environment": ENVIRONMENT,
        "records": (fast, slow),
        "other_load": 0.1,
        "settings": {"burst": 2, "images": 4},
        "ratios": (Ratio.between(slow, fast, "with NMS by without", 2),),
        "facts": {"cost_ms": {"fcos_e2e_nano": 5.0}},
        "skipped": {"fcos_x": "no file"},
        "seconds": 12.3,
    }
    return Results(**(values | changes))


def shown_in(columns: int, *shown: Any) -> str:
    """What a terminal of so many columns shows."""
    console = Console(width=columns, file=io.StringIO(), record=True)
    for each in shown:
        console.print(each)
    return console.export_text()


def check_written(question: Any, results: Results, folder: Path) -> str:
    """Write a run's files; they hold it, and a picture. Returns the Markdown."""
    data, png, text = write(question, results, folder)
    stem = results.stamp + ("" if results.kind == "table" else f"-{results.kind}")
    assert [path.name for path in (data, png, text)] == [
        f"{stem}.{s}" for s in ("json", "png", "md")
    ]
    assert read(data).to_json() == results.to_json()  # raises where the schema does not hold
    picture = cv2.imread(str(png))
    assert picture is not None and min(picture.shape[:2]) > 300 and picture.std() > 1
    said = text.read_text(encoding="utf-8")
    assert f"![{question.TITLE}]({png.name})" in said and str(folder) not in said
    return said

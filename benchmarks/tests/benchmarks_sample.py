"""Small made-up results, to try what reads result files without measuring; a module of tests."""

from typing import Any

import numpy as np

from nmsfree_benchmarks.harness.records import Ratio, Record, Results, State
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

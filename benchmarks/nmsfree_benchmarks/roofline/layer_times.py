"""Time of each layer, as ONNX Runtime's profiler sees it."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree_benchmarks.roofline.onnx_cost import Layer

RUNS, WARM_UP = 10, 3
KERNEL, BLOCKED = "_kernel_time", "_nchwc"  # what the profiler adds to a node's or value's name


def layer_times(
    path: Path, threads: int, images: NDArray[np.uint8], layers: Sequence[Layer]
) -> dict[str, float]:
    """Run a file under the profiler, on the processor.

    The profiler costs a little itself, so the sum is above the time of a run without it.

    Args:
        images: uint8 [N, H, W, 3].

    Returns:
        Layer name → milliseconds, median of `RUNS`. A layer that the engine joined to another, or
        calls by a name that is not in the graph, is missing.
    """
    took: dict[str, list[float]] = defaultdict(list)
    for event in _profile(path, threads, images):
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            took[event["name"].removesuffix(KERNEL).removesuffix(BLOCKED)].append(event["dur"])
    return dict(_matched(took, layers))


def _matched(took: dict[str, list[float]], layers: Sequence[Layer]) -> list[tuple[str, float]]:
    found = []
    for layer in layers:
        names = [name for name in layer.names if len(took.get(name, ())) == RUNS + WARM_UP]
        if names:
            runs = np.sum([took[name] for name in names], axis=0)[WARM_UP:]
            found.append((layer.name, float(np.median(runs)) / 1e3))
    return found


def _profile(path: Path, threads: int, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(WARM_UP + RUNS):
            session.run(None, {"images": images})
        text = Path(session.end_profiling()).read_text(encoding="utf-8")
    events: list[dict[str, Any]] = json.loads(text)
    return events
